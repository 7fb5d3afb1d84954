"""JobStatistics: they add up, come back from JSON as they were, and their percentiles are near the truth."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from pipeline.usecases.job_counts import LAST, JobCounts, bucket_of, percentile_ms


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_percentiles_are_within_nine_percent(share: float) -> None:
    """Of durations from a millisecond to hours, whichever way they were added up."""
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
        (0, 0, "none at all"),
        (-5, 0, "clocks differ"),
        (0.001, 0, "a millisecond"),
        (0.0011, 1, "a little more"),
        (1e12, LAST, "longer than any job"),
    ],
)
def test_bucket_of_odd_durations(seconds: float, bucket: int, remark: str) -> None:
    """Every duration has a bucket, and no tally more than a hundred and some of them."""
    assert bucket_of(seconds) == bucket


def test_percentile_of_nothing_is_none() -> None:
    """Where nothing happened there is no duration; the shortest one is shown as a millisecond."""
    assert percentile_ms({}, 0.5) is None
    assert percentile_ms({0: 1}, 0.95) == 1


def test_tally_comes_back_from_json() -> None:
    """What a tally holds, and no more, is in its JSON; what is 0 is left out."""
    counts = JobCounts(3, 2, 0, 1, 5, 17, Counter({4: 2}), Counter({40: 1}))
    data = json.loads(json.dumps(counts.to_data()))
    assert JobCounts.of(data) == counts
    assert JobCounts().to_data() == {}
    counts.add(JobCounts.of(data))
    assert (counts.enqueued, counts.waiting, counts.waits[4]) == (6, 17, 4)


@pytest.mark.parametrize("data", [{"enqueued": "x"}, {"waits": [1]}, {"runs": {"a": 1}}, {"failed": None}])
def test_damaged_tally_is_refused(data: Any) -> None:
    """It is an error that the reader of a chart expects."""
    with pytest.raises((ValueError, TypeError, AttributeError)):
        JobCounts.of(data)
