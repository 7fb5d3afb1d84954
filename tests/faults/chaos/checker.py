"""What must be true once all faults are healed and no work is left."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from tests.faults.chaos import dead_letters, deliveries, redis_keys, timeline
from tests.faults.chaos.clients import User, state_of
from tests.faults.chaos.driver import Driver
from tests.faults.chaos.installation import QUEUES, Installation
from tests.faults.chaos.operator import Operator
from tests.faults.chaos.report import Report, Seen
from tests.faults.chaos.world import DECODED, LIMITED, POISON, World, resident_mib

# A job is started at most attempts + stalls times; giving up takes a fence too, and may be repeated.
MAX_STARTS = 3 + 3 + 3
MAX_RESIDENT_MIB = 300
FINAL = {"active", "partial", "failed"}
# Why an asset may end as failed: faults of the AI service, three faults of a process, or the photo itself.
ENDLESS = "Reading the photo takes too long"
KILLED = "Reading the photo crashed"
REASONS = ("AI service", "Processing stalled", "Processing took longer", ENDLESS, KILLED)
# Users are disconnected for 3 s at times, and a socket may notice late that its process has ended.
EVENT_SECONDS = 30.0
# A fault of a process may end any job; a fault of an AI service only the jobs of that service.
OF_PROCESSES = ("Processing stalled", "Processing took longer")
POISONED = "AI service unavailable after 3 attempts"


async def drained(world: World, operator: Operator, report: Report, longest_seconds: float) -> float | None:
    """Return the seconds until no asset is `processing`, no event is undelivered and every queue is empty.

    None when that takes too long.
    """
    started_at = time.monotonic()
    while time.monotonic() - started_at < longest_seconds:
        left = {each.prefix: await _left(world, each, operator) for each in world.installations}
        if not any(left.values()):
            return time.monotonic() - started_at
        await asyncio.sleep(1)
    report.expect(False, "everything comes to rest", f"not within {longest_seconds:g} s: {left}")
    return None


async def _left(world: World, installation: Installation, operator: Operator) -> dict[str, Any]:
    """Return the work that is not done yet."""
    left: dict[str, Any] = {}
    if world.redis is None:
        status = await operator.status()
        left = {name: status[name] for name in ("waiting", "active", "delayed")}
    else:
        redis = world.redis.client()
        for base in map(installation.base, QUEUES):
            left[base + "waiting"] = redis.llen(base + "waiting")
            left |= {base + name: redis.zcard(base + name) for name in ("delayed", "leases", "parked")}
    left["processing"] = await asyncio.to_thread(installation.count_unfinished)
    for queue in QUEUES:
        left[f"stored of {queue}"] = sorted((await asyncio.to_thread(installation.stored_jobs, queue))[0])[:5]
    return {name: found for name, found in left.items() if found}


async def check(world: World, crowds: list[list[User]], driver: Driver, longest_seconds: float) -> Report:
    """Return the report of the run.

    crowds: the users of each installation.
    """
    report, has_faults = Report(), bool(driver.history)
    drain_seconds = await drained(world, driver.operator, report, longest_seconds)
    operators = [driver.operator, *(Operator([each.services[0].url], 0) for each in world.installations[1:])]
    dead_events = [await operator.rerun_notifications() for operator in operators]
    if any(dead_events):
        await drained(world, driver.operator, report, longest_seconds)
    await world.count_provider_calls()
    all_seen = [
        await Seen.by(installation, users, operator)
        for installation, users, operator in zip(world.installations, crowds, operators, strict=True)
    ]
    for seen in all_seen:
        of_one = await _check_installation(world, seen, has_faults)
        report.add(of_one, "" if seen is all_seen[0] else f"{seen.installation.prefix} ")
    timeline.check_pauses(report, world, driver)
    timeline.check_leases(report, world, driver, all_seen[0])
    calls, limited = await world.limited_calls()
    report.figures["limited service"] = f"{calls} calls, {limited} asked to wait"
    _check_processes(report, world)
    await asyncio.to_thread(redis_keys.check_all, report, world, all_seen)
    codes = [code for service in world.services for code in service.exit_codes]
    report.expect(not any(codes), "a process that is asked to end does so with exit code 0", codes)
    report.figures |= {
        "asked to end": len(codes),
        "events rerun": sum(dead_events),
        "faults": dict(driver.done),
        "refused": dict(sum((user.refused for users in crowds for user in users), Counter[str]())),
        "drain seconds": drain_seconds and round(drain_seconds, 1),
    }
    return report


async def _check_installation(world: World, seen: Seen, has_faults: bool) -> Report:
    """Return the report of one installation."""
    report = Report()
    _check_assets(report, seen)
    await _check_events(report, seen)
    _check_fences(report, seen)
    _check_calls(report, world, seen, has_faults)
    _check_isolation(report, seen, has_faults)
    await dead_letters.check_all(report, seen)
    deliveries.check_all(report, world.receiver, seen)
    return report


def _check_assets(report: Report, seen: Seen) -> None:
    users, documents = seen.users, seen.documents
    accepted = {asset_id for user in users for asset_id in user.accepted}
    lost = [
        asset_id
        for user in users
        for asset_id in user.accepted
        if seen.assets[user.name].get(asset_id, {}).get("status") not in FINAL
    ]
    report.expect(not lost, "every accepted upload reaches its end", f"{len(lost)} lost: {lost[:5]}")
    unexpected = set(documents) - accepted
    unsure = sum(user.unsure for user in users)
    report.expect(len(unexpected) <= unsure, "nothing unexpected is stored", f"{len(unexpected)} of at most {unsure}")
    doubled = {key: ids for user in users for key, ids in user.by_key.items() if len(ids) > 1}
    report.expect(not doubled, "one asset per Idempotency-Key", doubled)
    failed = [asset for asset in seen.all_assets if asset["status"] == "failed"]
    reasons = Counter(asset["aiMetadata"]["error"].split(" after ")[0] for asset in failed)
    unknown = [reason for reason in reasons if not reason.startswith(REASONS)]
    report.expect(not unknown, "assets fail only for their faults", unknown)
    report.figures |= {
        "accepted": len(accepted),
        "lost": len(lost),
        "unexpected": f"{len(unexpected)} (at most {unsure})",
        "by status": dict(Counter(asset["status"] for asset in seen.all_assets)),
        "failed because": dict(reasons),
    }


async def _check_events(report: Report, seen: Seen) -> None:
    users, url = seen.users, seen.installation.services[-1].url
    foreign, stale, unreceived = [], [], []
    deadline = time.monotonic() + EVENT_SECONDS
    for user in users:
        while not user.accepted <= user.live and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        async with user.session() as session:
            await user.catch_up(session, url, "1970-01-01T00:00:00Z")
        for asset_id, states in user.received.items():
            if seen.documents.get(asset_id, {}).get("userId") != user.name:
                foreign.append(asset_id)
            elif not seen.is_right(asset_id, states, state_of(seen.assets[user.name][asset_id])):
                stale.append((asset_id, states))
        unreceived += [asset_id for asset_id in user.accepted if asset_id not in user.live]
    report.expect(not foreign, "no event reaches another user", foreign[:5])
    report.expect(not stale, "one result per asset, and it stays", f"{len(stale)}: {stale[:3]}")
    promise = "every owner gets the event of every asset on a socket"
    report.expect(not unreceived, promise, f"{len(unreceived)}: {unreceived[:5]}")
    report.figures["resyncs"] = sum(user.resyncs for user in users)
    report.figures |= {"foreign": len(foreign), "stale": len(stale), "unreceived": len(unreceived)}


def _check_fences(report: Report, seen: Seen) -> None:
    documents, committed = seen.documents, defaultdict[str, set[tuple[str, int]]](set)
    lines = seen.installation.log
    for line in lines:
        if line["event"] == "asset_finished":
            committed[line["assetId"]].add((line["status"], line["fence"]))
    wrong = {
        asset_id: (ends, documents[asset_id]["fence"])
        for asset_id, ends in committed.items()
        if asset_id in documents
        and not seen.is_right(asset_id, ends, (documents[asset_id]["status"], documents[asset_id]["fence"]))
    }
    report.expect(not wrong, "the result is the highest fence's", f"{len(wrong)}: {list(wrong.items())[:3]}")
    names = Counter(line["event"] for line in lines)
    report.figures |= {"results dropped": names["result_dropped"], "leases lost": names["lease_lost"]}


def _check_calls(report: Report, world: World, seen: Seen, has_faults: bool) -> None:
    documents = seen.documents
    calls = {asset_id: count for asset_id, count in world.provider_calls.items() if asset_id in documents}
    # The first start of a job may take no fence.
    too_often = {asset_id: count for asset_id, count in calls.items() if count > documents[asset_id]["fence"] + 1}
    report.expect(not too_often, "the provider is asked at most once a start", too_often)
    if not has_faults:
        twice = {asset_id: count for asset_id, count in calls.items() if count != calls_of(documents[asset_id])}
        report.expect(not twice, "without faults the provider is asked once", twice)
    endless = {
        asset_id: found for asset_id, found in documents.items() if found["fence"] - found["excused"] > MAX_STARTS
    }
    report.expect(not endless, "a job is started a bounded number of times", endless)
    report.figures |= {
        "provider calls mean": round(sum(calls.values()) / max(1, len(calls)), 3),
        "provider calls max": max(calls.values(), default=0),
    }


def calls_of(document: Mapping[str, Any]) -> int:
    """Return how often the first AI service is asked for an asset in a run without faults."""
    return 3 if document["category"] == POISON else 1


def _check_isolation(report: Report, seen: Seen, has_faults: bool) -> None:
    users, known = seen.users, seen.assets
    endless = {asset_id for user in users for asset_id in user.endless}
    # An upload without a clear answer is left out: which photo it was is not known.
    assets = [known[user.name][each] for user in users for each in user.accepted if each in known[user.name]]
    ends: dict[str, Counter[str]] = {kind: Counter() for kind in (POISON, LIMITED, DECODED, "endless")}
    for asset in assets:
        kind = "endless" if asset["id"] in endless else asset["category"]
        if kind in ends:
            ends[kind][asset["aiMetadata"]["error"] or asset["status"]] += 1
    wrong = {end for end in ends[POISON] if end != POISONED and not end.startswith(REASONS)}
    report.expect(not wrong, "a photo that is always answered with 500 fails", wrong)
    # A limit costs no attempt, and a fault of the first service does not affect the second.
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


def _check_processes(report: Report, world: World) -> None:
    services = [service for each in world.installations for service in each.services]
    resident = [resident_mib(service.pid) for service in services]
    report.expect(max(resident) < MAX_RESIDENT_MIB, "memory stays flat", resident)
    errors = [line for each in services for line in each.log if line.get("level") in ("error", "critical")]
    report.expect(not errors, "no unexpected error is logged", [str(line)[:400] for line in errors[:3]])
    report.figures["resident MiB"] = [round(each) for each in resident]
