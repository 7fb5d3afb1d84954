"""JobCounts: they can be added, survive JSON unchanged, and their percentiles are nearly exact."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from pipeline.usecases.job_counts import LAST, JobCounts, bucket_of, percentile_ms


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_percentiles_are_within_nine_percent(share: float) -> None:
    """A percentile differs by less than ten percent from the exact one, for durations from a millisecond to hours."""
    chance = random.Random(17)
    seconds = sorted(10 ** chance.uniform(-3, 4) for _ in range(5000))
    halves = JobCounts(waits=Counter(map(bucket_of, seconds[::2]))), JobCounts(
        waits=Counter(map(bucket_of, seconds[1::2]))
    )
    halves[0].add(halves[1])
    found = percentile_ms(halves[0].waits, share)
    truth_ms = 1000 * seconds[round(len(seconds) * share) - 1]
    assert found is not None and abs(found / truth_ms - 1) < 0.1


@pytest.mark.parametrize(
    ("seconds", "bucket", "remark"),
    [
        (0, 0, "no duration"),
        (-5, 0, "clocks differ"),
        (0.001, 0, "a millisecond"),
        (0.0011, 1, "a little more"),
        (1e12, LAST, "longer than any job"),
    ],
)
def test_bucket_of_odd_durations(seconds: float, bucket: int, remark: str) -> None:
    """Every duration has a bucket between 0 and LAST, so that counts have a bounded number of buckets."""
    assert bucket_of(seconds) == bucket


def test_percentile_of_no_durations_is_none() -> None:
    """Without a duration the percentile is None; the shortest duration is shown as one millisecond."""
    assert percentile_ms({}, 0.5) is None
    assert percentile_ms({0: 1}, 0.95) == 1


def test_counts_survive_json() -> None:
    """The JSON has all counts that are not 0, and reading it gives the same counts."""
    counts = JobCounts(3, 2, 0, 1, 5, 17, Counter({4: 2}), Counter({40: 1}))
    data = json.loads(json.dumps(counts.to_data()))
    assert JobCounts.of(data) == counts
    assert JobCounts().to_data() == {}
    counts.add(JobCounts.of(data))
    assert (counts.enqueued, counts.waiting, counts.waits[4]) == (6, 17, 4)


@pytest.mark.parametrize("data", [{"enqueued": "x"}, {"waits": [1]}, {"runs": {"a": 1}}, {"failed": None}])
def test_damaged_counts_are_refused(data: Any) -> None:
    """Damaged JSON raises one of the errors that the caller catches."""
    with pytest.raises((ValueError, TypeError, AttributeError)):
        JobCounts.of(data)
