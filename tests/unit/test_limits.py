"""Rate limits: buckets that several processes share, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import structlog

from pipeline.errors import DependencyUnavailable, RateLimited
from pipeline.metrics import Metrics
from pipeline.usecases import limits as limits_module
from pipeline.usecases.limits import Limit, Limits, NoBuckets, network_of
from tests.clock import Clock
from tests.unit.metric_samples import sample


class SharedBuckets:
    """The buckets of all processes, which behave like those of lua/limit.lua."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.empty_at: dict[str, float] = {}
        self.calls = 0
        self.is_unavailable = False

    async def fill_buckets(self, added: Sequence[tuple[str, int, int]]) -> Sequence[float]:
        self.calls += 1
        if self.is_unavailable:
            raise DependencyUnavailable("unavailable")
        now, full = self.clock() * 1000, []
        for name, amount, capacity in added:
            full.append(min(max(0, self.empty_at.get(name, 0) - now) + amount, 2 * capacity))
            self.empty_at[name] = now + full[-1]
        return full


class Deployment:
    """Processes that share buckets and a clock. The limit is 60 uploads per minute: one per second, 120 at once."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.shared = SharedBuckets(self.clock)
        self.metrics = Metrics()

    def process(self, per_minute: int = 60) -> Limits:
        """Return the limits of one more process."""
        return Limits(dict.fromkeys(Limit, per_minute), self.shared, self.metrics, self.clock)


@pytest.fixture
def deployment() -> Deployment:
    return Deployment()


def accepted_uploads(limits: Limits, count: int, user: str = "anna") -> int:
    """Return how many of this number of uploads the limit accepts."""
    passed = 0
    for _ in range(count):
        try:
            limits.upload(user)
            passed += 1
        except RateLimited:
            pass
    return passed


def test_burst_passes_then_one_at_a_time(deployment: Deployment) -> None:
    """Twice the limit per minute is accepted at once, then one upload per second; Retry-After gives this wait."""
    limits = deployment.process()
    assert accepted_uploads(limits, 300) == 120
    with pytest.raises(RateLimited) as refused:
        limits.upload("anna")
    assert refused.value.retry_after_seconds == 1
    deployment.clock.now += refused.value.retry_after_seconds
    assert accepted_uploads(limits, 10) == 1
    deployment.clock.now += 3600
    assert accepted_uploads(limits, 300) == 120
    assert sample(deployment.metrics, "pipeline_rate_limited_total", limit="uploads") == 180 + 1 + 9 + 180


def test_users_and_limits_do_not_share_a_bucket(deployment: Deployment) -> None:
    """Many uploads of one user do not limit another user, nor other requests of the same user."""
    limits = deployment.process()
    accepted_uploads(limits, 300)
    assert accepted_uploads(limits, 120, "ben") == 120
    limits.request("anna")
    limits.wrong_token("anna")


def test_limit_of_zero_refuses_no_upload(deployment: Deployment) -> None:
    """A limit of 0 means that no upload is refused."""
    limits = deployment.process(0)
    assert accepted_uploads(limits, 10_000) == 10_000


@pytest.mark.parametrize("per_minute", [1, 7, 60, 599, 1_000_000])
def test_burst_is_twice_the_limit(deployment: Deployment, per_minute: int) -> None:
    """The burst is exact, also for limits with a fraction per second."""
    assert accepted_uploads(deployment.process(per_minute), 3000) == min(3000, 2 * per_minute)


@pytest.mark.gen_test
async def test_processes_share_their_limit(deployment: Deployment) -> None:
    """A user has the rest of the limit at another process; over a minute both processes together obey the limit."""
    one, other = deployment.process(), deployment.process()
    assert accepted_uploads(one, 100) == 100
    await one.synchronize()
    assert accepted_uploads(other, 1) == 1
    await other.synchronize()
    assert accepted_uploads(other, 100) == 19
    await other.synchronize()
    assert accepted_uploads(one, 100) == 20  # this process has not synchronized since
    await one.synchronize()
    passed = 0
    for _ in range(600):
        deployment.clock.now += 0.1
        passed += accepted_uploads(one, 2) + accepted_uploads(other, 2)
        await one.synchronize()
        await other.synchronize()
    # A minute allows sixty uploads, minus the twenty that were too many.
    assert 38 <= passed <= 43


@pytest.mark.gen_test
async def test_without_redis_each_process_counts_alone(deployment: Deployment) -> None:
    """An outage of Redis refuses no upload, and later uploads are not limited for those of the outage."""
    limits = deployment.process()
    deployment.shared.is_unavailable = True
    for _ in range(30):
        assert accepted_uploads(limits, 60) == 60
        await limits.synchronize()
        deployment.clock.now += 60
    deployment.shared.is_unavailable = False
    assert accepted_uploads(limits, 300) == 120
    await limits.synchronize()
    deployment.clock.now += 60
    assert accepted_uploads(limits, 300) == 60


@pytest.mark.gen_test
async def test_emptied_redis_allows_no_second_burst(deployment: Deployment) -> None:
    """After a FLUSHALL a process still counts the uploads that it has accepted."""
    limits = deployment.process()
    assert accepted_uploads(limits, 119) == 119
    await limits.synchronize()
    deployment.shared.empty_at.clear()
    assert accepted_uploads(limits, 300) == 1
    await limits.synchronize()
    assert accepted_uploads(limits, 300) == 0


@pytest.mark.gen_test
async def test_many_users_need_few_calls_and_are_forgotten(deployment: Deployment) -> None:
    """Ten thousand users at once need fifty calls of Redis; a process forgets users with empty buckets."""
    limits = deployment.process()
    for number in range(10_000):
        limits.upload(f"user-{number}")
    await limits.synchronize()
    assert deployment.shared.calls == 10_000 / limits_module.BUCKETS_AT_ONCE
    deployment.clock.now += limits_module.SWEEP_SECONDS
    limits.upload("anna")
    await limits.synchronize()
    assert len(limits._known) == 1


def test_known_buckets_are_bounded(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented users or addresses do not fill the memory: the number of known buckets is bounded."""
    monkeypatch.setattr(limits_module, "BUCKETS_AT_MOST", 100)
    limits = deployment.process()
    for number in range(1000):
        limits.wrong_token(f"192.0.2.{number}")
    assert len(limits._known) == 100


def test_flood_is_logged_once_a_minute(deployment: Deployment) -> None:
    """The log line has the user and the number of lines left out since the last one, and needs no bucket."""
    limits = deployment.process()
    with structlog.testing.capture_logs() as lines:
        accepted_uploads(limits, 300)
        deployment.clock.now += 60
        accepted_uploads(limits, 300)
    assert [(line["limit"], line["userId"], line.get("repeated")) for line in lines] == [
        ("uploads", "anna", None),
        ("uploads", "anna", 179),
    ]
    limits.count_refusal(Limit.BACKLOG, "ben")
    assert len(limits._known) == 1


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("/run/socket", "/run/socket"),
        ("", ""),
    ],
)
def test_address_is_limited_by_its_network(address: str, network: str) -> None:
    """An IPv6 /64 counts as one client; an IPv4 address counts as itself, also when written as IPv6."""
    assert network_of(address) == network


@pytest.mark.gen_test
async def test_process_without_shared_buckets_counts_alone(deployment: Deployment) -> None:
    """Without shared buckets a process limits its own uploads."""
    limits = Limits({Limit.UPLOADS: 60}, NoBuckets(), deployment.metrics, deployment.clock)
    accepted_uploads(limits, 300)
    await limits.synchronize()
    assert accepted_uploads(limits, 300) == 0
