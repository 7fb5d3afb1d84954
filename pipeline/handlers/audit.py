"""The audit list: which operator changed what; for operators."""

from __future__ import annotations

import re
from typing import Any

from pipeline.auth import USER_ID
from pipeline.handlers.base import OperatorHandler
from pipeline.handlers.query import next_cursor
from pipeline.usecases.audit import Audit

ENTRY_ID = re.compile(r"[0-9a-f]{24}")
ACTION = re.compile(r".{1,200}")


class AuditHandler(OperatorHandler):
    """GET /api/queue/audit."""

    route = "/api/queue/audit"

    def initialize(self, *, audit: Audit, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.audit = audit

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        limit, after = query.limit(), query.cursor(ENTRY_ID)
        who = query.text("who", USER_ID, "Must be a user's id")
        action = query.text("action", ACTION, "Must be an action as an entry names it")
        query.check()
        items, position = await self.audit.page(limit=limit, after=after, who=who, action=action)
        self.reply({"items": items, "nextCursor": next_cursor(position)})
