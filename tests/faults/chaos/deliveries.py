"""What the receiver of webhooks accepted: the event of every finished asset, at least once, and no event of another
installation."""

from __future__ import annotations

import json
from collections import Counter

from tests.fake_receiver import FakeReceiver
from tests.faults.chaos.clients import state_of
from tests.faults.chaos.report import Report, Seen


def check_all(report: Report, receiver: FakeReceiver, seen: Seen) -> None:
    """Compare the deliveries to the installation's own path with its assets."""
    path = f"/{seen.installation.prefix}"
    events = [json.loads(request.body)["data"] for request in receiver.accepted if request.path == path]
    taken: dict[str, Counter[tuple[str, ...]]] = {}
    foreign = []
    for event in events:
        if seen.documents.get(event["assetId"], {}).get("userId") != event["userId"]:
            foreign.append(event["assetId"])
        taken.setdefault(event["assetId"], Counter())[state_of(event)] += 1
    undelivered, stale = [], []
    for asset in seen.all_assets:
        received = taken.get(asset["id"], Counter())
        if asset["finishedAt"] and state_of(asset) not in received:
            undelivered.append(asset["id"])
        elif asset["finishedAt"] and not seen.is_right(asset["id"], received, state_of(asset)):
            stale.append((asset["id"], received))
    report.expect(not foreign, "no event reaches another installation's receiver", foreign[:5])
    promise = "every finished asset's event reaches the receiver"
    report.expect(not undelivered, promise, f"{len(undelivered)}: {undelivered[:5]}")
    report.expect(not stale, "the receiver gets one result per asset", f"{len(stale)}: {stale[:3]}")
    asked = sum(request.path == path for request in receiver.requests)
    distinct = sum(map(len, taken.values()))
    report.figures["webhooks"] = {
        "asked": asked,
        "taken": len(events),
        "repeats": len(events) - distinct,
        "undelivered": len(undelivered),
    }
