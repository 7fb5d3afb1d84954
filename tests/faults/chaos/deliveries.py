"""What the receiver of webhooks has taken: every finished asset's event, at least once, and nobody else's."""

from __future__ import annotations

import json
from collections import Counter

from tests.fake_receiver import FakeReceiver
from tests.faults.chaos.clients import state_of
from tests.faults.chaos.report import Report, Seen


def check_all(report: Report, receiver: FakeReceiver, seen: Seen) -> None:
    """Compare what came to the installation's own path with its assets."""
    path = f"/{seen.installation.prefix}"
    events = [json.loads(received.body)["data"] for received in receiver.taken if received.path == path]
    taken: dict[str, Counter[tuple[str, ...]]] = {}
    foreign = []
    for event in events:
        if seen.documents.get(event["assetId"], {}).get("userId") != event["userId"]:
            foreign.append(event["assetId"])
        taken.setdefault(event["assetId"], Counter())[state_of(event)] += 1
    undelivered, stale = [], []
    for asset in seen.all_assets:
        told = taken.get(asset["id"], Counter())
        if asset["finishedAt"] and state_of(asset) not in told:
            undelivered.append(asset["id"])
        elif asset["finishedAt"] and not seen.is_right(asset["id"], told, state_of(asset)):
            stale.append((asset["id"], told))
    report.expect(not foreign, "no event reaches another installation's receiver", foreign[:5])
    promise = "every finished asset's event reaches the receiver"
    report.expect(not undelivered, promise, f"{len(undelivered)}: {undelivered[:5]}")
    report.expect(not stale, "the receiver is told one result per asset", f"{len(stale)}: {stale[:3]}")
    asked = sum(received.path == path for received in receiver.requests)
    distinct = sum(map(len, taken.values()))
    report.figures["webhooks"] = {
        "asked": asked,
        "taken": len(events),
        "repeats": len(events) - distinct,
        "undelivered": len(undelivered),
    }
