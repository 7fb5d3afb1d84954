"""How much is too much: buckets that several processes fill, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import structlog

from pipeline.errors import DependencyUnavailable, RateLimited
from pipeline.metrics import Metrics
from pipeline.usecases import limits as limits_module
from pipeline.usecases.limits import Limit, Limits, NoBuckets, network_of
from tests.clock import Clock
from tests.unit.test_metrics import sample


class Shared:
    """The buckets of all processes, as lua/limit.lua has them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.empty_at: dict[str, float] = {}
        self.calls = 0
        self.is_away = False

    async def fill_buckets(self, added: Sequence[tuple[str, int, int]]) -> Sequence[float]:
        self.calls += 1
        if self.is_away:
            raise DependencyUnavailable("away")
        now, full = self.clock() * 1000, []
        for name, amount, holds in added:
            full.append(min(max(0, self.empty_at.get(name, 0) - now) + amount, 2 * holds))
            self.empty_at[name] = now + full[-1]
        return full


class Setting:
    """Processes that share buckets and a clock. Sixty uploads in a minute: one a second, 120 at once."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.shared = Shared(self.clock)
        self.metrics = Metrics()

    def process(self, per_minute: int = 60) -> Limits:
        return Limits(dict.fromkeys(Limit, per_minute), self.shared, self.metrics, self.clock)


@pytest.fixture
def setting() -> Setting:
    return Setting()


def let_through(limits: Limits, count: int, who: str = "anna") -> int:
    """Return how many uploads of that many are let through."""
    passed = 0
    for _ in range(count):
        try:
            limits.upload(who)
            passed += 1
        except RateLimited:
            pass
    return passed


def test_burst_passes_then_one_at_a_time(setting: Setting) -> None:
    """Twice a minute's worth comes at once; then each waits its second, and Retry-After says how long."""
    limits = setting.process()
    assert let_through(limits, 300) == 120
    with pytest.raises(RateLimited) as refused:
        limits.upload("anna")
    assert refused.value.retry_after_seconds == 1
    setting.clock.now += refused.value.retry_after_seconds
    assert let_through(limits, 10) == 1
    setting.clock.now += 3600
    assert let_through(limits, 300) == 120
    assert sample(setting.metrics, "pipeline_rate_limited_total", limit="uploads") == 180 + 1 + 9 + 180


def test_users_and_limits_do_not_share_a_bucket(setting: Setting) -> None:
    """A flood of one user refuses nothing of another, and uploads nothing of other requests."""
    limits = setting.process()
    let_through(limits, 300)
    assert let_through(limits, 120, "ben") == 120
    limits.request("anna")
    limits.wrong_token("anna")


def test_limit_of_zero_does_not_hold(setting: Setting) -> None:
    """0 is no limit, and asks Redis nothing."""
    limits = setting.process(0)
    assert let_through(limits, 10_000) == 10_000


@pytest.mark.parametrize("per_minute", [1, 7, 60, 599, 1_000_000])
def test_burst_is_twice_the_limit(setting: Setting, per_minute: int) -> None:
    """Fractions of a second add up to the whole number."""
    assert let_through(setting.process(per_minute), 3000) == min(3000, 2 * per_minute)


@pytest.mark.gen_test
async def test_processes_share_what_they_let_through(setting: Setting) -> None:
    """A user who goes to another process finds there what is left; over a minute the limit holds for both together."""
    one, other = setting.process(), setting.process()
    assert let_through(one, 100) == 100
    await one.synchronize()
    assert let_through(other, 1) == 1
    await other.synchronize()
    assert let_through(other, 100) == 19
    await other.synchronize()
    assert let_through(one, 100) == 20  # it has not asked since
    await one.synchronize()
    passed = 0
    for _ in range(600):
        setting.clock.now += 0.1
        passed += let_through(one, 2) + let_through(other, 2)
        await one.synchronize()
        await other.synchronize()
    # A minute empties sixty, less the twenty that were too many.
    assert 38 <= passed <= 43


@pytest.mark.gen_test
async def test_redis_away_leaves_each_process_its_own_count(setting: Setting) -> None:
    """Nothing is refused because Redis is away, and nobody pays later for what was let through then."""
    limits = setting.process()
    setting.shared.is_away = True
    for _ in range(30):
        assert let_through(limits, 60) == 60
        await limits.synchronize()
        setting.clock.now += 60
    setting.shared.is_away = False
    assert let_through(limits, 300) == 120
    await limits.synchronize()
    setting.clock.now += 60
    assert let_through(limits, 300) == 60


@pytest.mark.gen_test
async def test_emptied_redis_gives_no_second_burst(setting: Setting) -> None:
    """After a FLUSHALL a process still knows what it has let through."""
    limits = setting.process()
    assert let_through(limits, 119) == 119
    await limits.synchronize()
    setting.shared.empty_at.clear()
    assert let_through(limits, 300) == 1
    await limits.synchronize()
    assert let_through(limits, 300) == 0


@pytest.mark.gen_test
async def test_many_users_cost_few_calls_and_are_forgotten(setting: Setting) -> None:
    """Ten thousand users in one moment are fifty calls; when their buckets are empty nothing is kept of them."""
    limits = setting.process()
    for number in range(10_000):
        limits.upload(f"user-{number}")
    await limits.synchronize()
    assert setting.shared.calls == 10_000 / limits_module.BUCKETS_AT_ONCE
    setting.clock.now += limits_module.SWEEP_SECONDS
    limits.upload("anna")
    await limits.synchronize()
    assert len(limits._known) == 1


def test_known_buckets_are_bounded(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes users or addresses up fills no memory."""
    monkeypatch.setattr(limits_module, "BUCKETS_AT_MOST", 100)
    limits = setting.process()
    for number in range(1000):
        limits.wrong_token(f"192.0.2.{number}")
    assert len(limits._known) == 100


def test_flood_is_logged_once_a_minute(setting: Setting) -> None:
    """The line names the user, and how many lines were left out since the last one. No bucket is kept for that."""
    limits = setting.process()
    with structlog.testing.capture_logs() as lines:
        let_through(limits, 300)
        setting.clock.now += 60
        let_through(limits, 300)
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
def test_address_is_counted_by_its_network(address: str, network: str) -> None:
    """All of an IPv6 /64 is one machine or household; an IPv4 address stays what it is however it is written."""
    assert network_of(address) == network


@pytest.mark.gen_test
async def test_no_buckets_count_alone(setting: Setting) -> None:
    """Without Redis a process knows its own count."""
    limits = Limits({Limit.UPLOADS: 60}, NoBuckets(), setting.metrics, setting.clock)
    let_through(limits, 300)
    await limits.synchronize()
    assert let_through(limits, 300) == 0
