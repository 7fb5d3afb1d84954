"""The keys in Redis at the end: no unknown key, no key left behind, no key of another installation."""

from __future__ import annotations

from typing import Any

from tests.faults.chaos.installation import QUEUES
from tests.faults.chaos.report import Report, Seen
from tests.faults.chaos.world import World

KNOWN_KEYS = {
    *("waiting", "groups", "grouped", "delayed", "postponed", "leases", "completed", "failed", "wake", "holds"),
    *("owner", "processes"),
}


def check_all(report: Report, world: World, all_seen: list[Seen]) -> None:
    """Check every key."""
    bases = {seen.installation.base(queue): seen for seen in all_seen for queue in QUEUES}
    with world.redis_at_rest() as redis:
        keys: dict[str, list[str]] = {base: [] for base in bases}
        unknown: list[str] = []
        for key in redis.scan_iter(count=1000):
            base = next((base for base in bases if key.startswith(base)), None)
            (unknown if base is None else keys[base]).append(key if base is None else key.removeprefix(base))
        for base, names in keys.items():
            unknown += _check_queue(report, redis, base, names)
        report.expect(not unknown, "Redis holds nothing unknown", unknown[:5])
        jobs: dict[str, Any] = {}
        for base, seen in bases.items():
            jobs[base] = {name: set(redis.zrange(base + name, 0, -1)) for name in ("failed", "completed")}
            others = [each for other in all_seen if other is not seen for each in other.documents.values()]
            mixed = (jobs[base]["failed"] | jobs[base]["completed"]) & {each["processingJobId"] for each in others}
            report.expect(not mixed, "no installation has jobs of another", sorted(mixed)[:5])
        report.figures["jobs in Redis"] = {
            base: {name: len(ids) for name, ids in found.items()} for base, found in jobs.items()
        }


def _check_queue(report: Report, redis: Any, base: str, names: list[str]) -> list[str]:
    """Return the unknown keys."""
    found: dict[str, set[str]] = {"record:": set(), "state:": set()}
    unknown = []
    for name in names:
        kind = next((kind for kind in found if name.startswith(kind)), None)
        if kind:
            found[kind].add(name.removeprefix(kind))
        elif name not in KNOWN_KEYS and not name.startswith(("turn:", "sums:", "limit:")):
            unknown.append(base + name)
    failed = set(redis.zrange(base + "failed", 0, -1))
    for kind, ids in found.items():
        report.expect(ids == failed, f"only dead letters have a {kind[:-1]}", sorted(ids ^ failed)[:5])
    return unknown
