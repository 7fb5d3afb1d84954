"""Deliveries of durable notifiers: list them, repeat one; for operators."""

from __future__ import annotations

import re
from typing import Any

from pipeline.assets.asset_ids import ASSET_ID
from pipeline.errors import NotFound
from pipeline.handlers.base import OperatorHandler
from pipeline.handlers.query import next_cursor
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.deliveries import Deliveries, DeliveryState
from pipeline.usecases.undelivered import Undelivered

DELIVERY_ID = re.compile(r"notifications:[0-9a-f]{24}")
NOTIFIER = re.compile(r"[\w.-]{1,100}")


class DeliveriesHandler(OperatorHandler):
    """GET /api/queue/deliveries."""

    route = "/api/queue/deliveries"

    def initialize(self, *, deliveries: Deliveries, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.deliveries = deliveries

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        limit, after = query.limit(), query.cursor(DELIVERY_ID)
        asset_id = query.text("asset", ASSET_ID, "Must be 24 hex digits")
        state = query.choice("state", tuple(DeliveryState))
        notifier = query.text("notifier", NOTIFIER, "Must be a notifier's name")
        query.check()
        items, position = await self.deliveries.page(
            limit=limit,
            after=after,
            asset_id=asset_id.lower() if asset_id else None,
            state=state,
            notifier=notifier,
        )
        self.reply({"items": items, "nextCursor": next_cursor(position)})


class RepeatDeliveryHandler(OperatorHandler):
    """POST /api/queue/deliveries/{deliveryId}/retry: sends the event again, even if it was delivered."""

    route = "/api/queue/deliveries/{deliveryId}/retry"
    actions = {"POST": "send delivery again"}

    def initialize(  # type: ignore[override]
        self, *, undelivered: Undelivered, tracing: Tracing = OFF, **common: Any
    ) -> None:
        super().initialize(**common)
        self.undelivered = undelivered
        self.tracing = tracing

    async def post(self, delivery_id: str) -> None:
        await self.authenticate()
        if not DELIVERY_ID.fullmatch(delivery_id):
            raise NotFound("There is no delivery of that id")
        with self.tracing.request(self):
            receipt = await self.undelivered.send_again(delivery_id, self.request_id)
            answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
            self.reply(answer | {"status": "processing", "message": "Notification queued"}, status=202)
