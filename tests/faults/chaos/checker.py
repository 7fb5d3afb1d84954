"""What must be true once all faults are healed and everything has come to rest."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.faults.chaos.clients import User, state_of
from tests.faults.chaos.world import DECODED, LIMITED, POISON, World, resident_mib

# A start is held against a job at most attempts + stalls times; giving up takes a fence too, and may be repeated.
MAX_STARTS = 3 + 3 + 3
MAX_RESIDENT_MIB = 300
FINAL = {"active", "partial", "failed"}
# Why an asset may end as failed: what the faults do to the AI service, or to a process three times; what is in it.
ENDLESS = "Reading the photo takes too long"
KILLED = "Reading the photo crashed"
REASONS = ("AI service", "Processing stalled", "Processing took longer", ENDLESS, KILLED)
BASE = "pipeline:{ai-processing}:"
# Users are away for 3 s at times, and their sockets may take a while to notice that a process is gone.
HEAR_SECONDS = 30.0
KNOWN_KEYS = {"waiting", "groups", "grouped", "delayed", "leases", "completed", "failed", "wake", "holds", "owner"}
# What is done to a process may end any job; what is done to an AI service only its own.
OF_PROCESSES = ("Processing stalled", "Processing took longer")
POISONED = "AI service unavailable after 3 attempts"


@dataclass
class Report:
    """What was found. broken: every promise that was not kept, with evidence."""

    broken: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def expect(self, is_true: bool, promise: str, evidence: object = "") -> None:
        if not is_true:
            self.broken.append(f"{promise}: {str(evidence)[:600]}")


async def drained(world: World, longest_seconds: float) -> float | None:
    """Return the seconds until nothing is `processing` any more and the queue is empty, None when that takes too
    long.
    """
    started_at = time.monotonic()
    redis = world.redis.client()
    while time.monotonic() - started_at < longest_seconds:
        counts = [redis.llen(BASE + "waiting"), *(redis.zcard(BASE + name) for name in ("delayed", "leases", "parked"))]
        if not any(counts) and not await asyncio.to_thread(world.count_unfinished):
            return time.monotonic() - started_at
        await asyncio.sleep(1)
    return None


async def check(world: World, users: list[User], faults: Counter[str], longest_seconds: float) -> Report:
    """Return what the run has shown."""
    report = Report()
    drain_seconds = await drained(world, longest_seconds)
    report.expect(drain_seconds is not None, "everything comes to rest", f"not within {longest_seconds:g} s")
    await world.count_provider_calls()
    documents = await asyncio.to_thread(world.documents)
    url = world.services[-1].url
    seen = {user.name: {asset["id"]: asset for asset in await user.assets(url)} for user in users}
    _check_assets(report, users, seen, documents)
    await _check_events(report, url, users, seen, documents)
    _check_fences(report, world, documents)
    _check_calls(report, world, documents, bool(faults))
    _check_isolation(report, users, seen, bool(faults))
    calls, limited = await world.limited_calls()
    report.figures["limited service"] = f"{calls} calls, {limited} told to wait"
    _check_redis(report, world)
    _check_processes(report, world)
    report.figures |= {
        "faults": dict(faults),
        "refused": dict(sum((user.refused for user in users), Counter[str]())),
        "drain seconds": drain_seconds and round(drain_seconds, 1),
    }
    return report


def _check_assets(
    report: Report, users: list[User], seen: dict[str, dict[str, Any]], documents: dict[str, dict[str, Any]]
) -> None:
    accepted = {asset_id for user in users for asset_id in user.accepted}
    lost = [
        asset_id
        for user in users
        for asset_id in user.accepted
        if seen[user.name].get(asset_id, {}).get("status") not in FINAL
    ]
    report.expect(not lost, "every accepted upload reaches its end", f"{len(lost)} lost: {lost[:5]}")
    unexpected = set(documents) - accepted
    unsure = sum(user.unsure for user in users)
    report.expect(len(unexpected) <= unsure, "nothing unexpected is stored", f"{len(unexpected)} of at most {unsure}")
    doubled = {key: ids for user in users for key, ids in user.by_key.items() if len(ids) > 1}
    report.expect(not doubled, "one asset per Idempotency-Key", doubled)
    failed = [asset for assets in seen.values() for asset in assets.values() if asset["status"] == "failed"]
    reasons = Counter(asset["aiMetadata"]["error"].split(" after ")[0] for asset in failed)
    strange = [reason for reason in reasons if not reason.startswith(REASONS)]
    report.expect(not strange, "assets fail only for what was done to them", strange)
    report.figures |= {
        "accepted": len(accepted),
        "lost": len(lost),
        "unexpected": f"{len(unexpected)} (at most {unsure})",
        "by status": dict(Counter(asset["status"] for assets in seen.values() for asset in assets.values())),
        "failed because": dict(reasons),
    }


async def _check_events(
    report: Report,
    url: str,
    users: list[User],
    seen: dict[str, dict[str, Any]],
    documents: dict[str, dict[str, Any]],
) -> None:
    foreign, stale, unheard = [], [], []
    deadline = time.monotonic() + HEAR_SECONDS
    for user in users:
        while not user.accepted <= user.live and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        async with user.session() as session:
            await user.catch_up(session, url, "1970-01-01T00:00:00Z")
        for asset_id, states in user.heard.items():
            if documents.get(asset_id, {}).get("userId") != user.name:
                foreign.append(asset_id)
            elif states != {state_of(seen[user.name][asset_id])}:
                stale.append((asset_id, states))
        unheard += [asset_id for asset_id in user.accepted if asset_id not in user.live]
    report.expect(not foreign, "no event reaches another user", foreign[:5])
    report.expect(not stale, "one result per asset, and it stays", f"{len(stale)}: {stale[:3]}")
    report.expect(not unheard, "every owner hears of every asset on a socket", f"{len(unheard)}: {unheard[:5]}")
    report.figures["resyncs"] = sum(user.resyncs for user in users)
    report.figures |= {"foreign": len(foreign), "stale": len(stale), "unheard": len(unheard)}


def _check_fences(report: Report, world: World, documents: dict[str, dict[str, Any]]) -> None:
    committed: dict[str, set[int]] = defaultdict(set)
    for service in world.services:
        for line in service.log:
            if line["event"] == "asset_finished":
                committed[line["assetId"]].add(line["fence"])
    wrong = {
        asset_id: (fences, documents[asset_id]["fence"])
        for asset_id, fences in committed.items()
        if asset_id in documents and fences != {documents[asset_id]["fence"]}
    }
    report.expect(not wrong, "the result is the highest fence's", f"{len(wrong)}: {list(wrong.items())[:3]}")
    lines = [line["event"] for service in world.services for line in service.log]
    report.figures |= {"results dropped": lines.count("result_dropped"), "leases lost": lines.count("lease_lost")}


def _check_calls(report: Report, world: World, documents: dict[str, dict[str, Any]], has_faults: bool) -> None:
    calls = world.provider_calls
    often = {
        asset_id: count
        for asset_id, count in calls.items()
        if count > (documents.get(asset_id) or {"fence": 99})["fence"]
    }
    report.expect(not often, "the provider is asked at most once a start", often)
    if not has_faults:
        twice = {asset_id: count for asset_id, count in calls.items() if count != calls_of(documents[asset_id])}
        report.expect(not twice, "without faults the provider is asked once", twice)
    stubborn = {
        asset_id: found for asset_id, found in documents.items() if found["fence"] - found["excused"] > MAX_STARTS
    }
    report.expect(not stubborn, "a job is started a bounded number of times", stubborn)
    report.figures |= {
        "provider calls mean": round(sum(calls.values()) / max(1, len(calls)), 3),
        "provider calls max": max(calls.values(), default=0),
    }


def calls_of(document: dict[str, Any]) -> int:
    """Return how often the first AI service is asked for an asset when nothing goes wrong."""
    return 3 if document["category"] == POISON else 1


def _check_isolation(
    report: Report, users: list[User], seen: dict[str, dict[str, Any]], has_faults: bool
) -> None:
    endless = {asset_id for user in users for asset_id in user.endless}
    # Of what got no clear answer nobody knows which photo it was.
    assets = [seen[user.name][asset_id] for user in users for asset_id in user.accepted if asset_id in seen[user.name]]
    ends: dict[str, Counter[str]] = {kind: Counter() for kind in (POISON, LIMITED, DECODED, "endless")}
    for asset in assets:
        kind = "endless" if asset["id"] in endless else asset["category"]
        if kind in ends:
            ends[kind][asset["aiMetadata"]["error"] or asset["status"]] += 1
    wrong = {end for end in ends[POISON] if end != POISONED and not end.startswith(REASONS)}
    report.expect(not wrong, "a photo that is always answered with 500 fails", wrong)
    # A limit costs no attempt, and what happens to the first service is nothing to the second.
    wrong = {end for end in ends[LIMITED] if end not in FINAL and not end.startswith(OF_PROCESSES)}
    report.expect(not wrong, "a provider that asks to wait loses no photo", wrong)
    wrong = {end for end in ends["endless"] if not end.startswith((ENDLESS, KILLED, *OF_PROCESSES))}
    report.expect(not wrong, "a photo that never ends its decoding fails for that", wrong)
    wrong = {end for end in ends[DECODED] if end.startswith(ENDLESS)}
    report.expect(not wrong, "no photo fails for another that was decoded before it", wrong)
    if not has_faults:
        others = {asset["status"] for asset in assets if asset["category"] != POISON and asset["id"] not in endless}
        report.expect(others <= {"active"}, "without faults only poisoned and hostile photos fail", others)
    names = {POISON: "poisoned", LIMITED: "limited", DECODED: "decoded"}
    report.figures |= {names.get(kind, kind): dict(found) for kind, found in ends.items()}


def _check_redis(report: Report, world: World) -> None:
    redis = world.redis.client()
    kept: dict[str, set[str]] = {"record:": set(), "state:": set()}
    strange = []
    for key in redis.scan_iter(count=1000):
        name = key.removeprefix(BASE)
        kind = next((kind for kind in kept if name.startswith(kind)), None)
        if kind:
            kept[kind].add(name.removeprefix(kind))
        elif name not in KNOWN_KEYS and not name.startswith("turn:"):
            strange.append(key)
    report.expect(not strange, "Redis holds nothing unknown", strange[:5])
    failed = set(redis.zrange(BASE + "failed", 0, -1))
    for kind, ids in kept.items():
        report.expect(ids == failed, f"a {kind[:-1]} is kept of dead letters only", sorted(ids ^ failed)[:5])
    report.figures["jobs in Redis"] = {"failed": len(failed), "completed": redis.zcard(BASE + "completed")}


def _check_processes(report: Report, world: World) -> None:
    resident = [resident_mib(service.pid) for service in world.services]
    report.expect(max(resident) < MAX_RESIDENT_MIB, "memory stays flat", resident)
    errors = [line for service in world.services for line in service.log if line.get("level") in ("error", "critical")]
    report.expect(not errors, "no unexpected error is logged", [str(line)[:400] for line in errors[:3]])
    report.figures["resident MiB"] = [round(each) for each in resident]
