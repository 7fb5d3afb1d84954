"""One user: what the service stores of the user, and its erasure; for admins."""

from __future__ import annotations

from typing import Any

from pipeline.auth import USER_ID
from pipeline.errors import ValidationError
from pipeline.handlers.base import OperatorHandler
from pipeline.rooms.rooms import Rooms
from pipeline.usecases.erasing import Erasing
from pipeline.usecases.replay import ROOM_PREFIX
from pipeline.usecases.users import Users

# How long a DELETE waits for the erase; then it answers with the progress so far.
ERASE_SECONDS = 20.0


class UserHandler(OperatorHandler):
    """GET and DELETE /api/users/{sub}."""

    route = "/api/users/{sub}"
    actions = {"DELETE": "erase user"}
    # The access log must not name an erased user.
    hides_path = True

    def initialize(  # type: ignore[override]
        self, *, users: Users, erasing: Erasing, rooms: Rooms, **common: Any
    ) -> None:
        super().initialize(**common)
        self.users = users
        self.erasing = erasing
        self.rooms = rooms

    async def get(self, user_id: str) -> None:
        await self.authenticate()
        shown = await self.users.describe(_user_id(user_id))
        self.reply(shown | {"socketsHere": len(self.rooms.members(ROOM_PREFIX + user_id))})

    async def delete(self, user_id: str) -> None:
        caller = await self.authenticate()
        # The audit list must not name an erased user; it has the id of the erase, as log lines do.
        self.change_act(target=None)
        if caller.user_id == user_id:
            self.change_act(who=None, address=None)
        erasure = await self.erasing.erase(_user_id(user_id), ERASE_SECONDS)
        self.change_act(target=f"erase {erasure.id}", count=erasure.assets)
        self.reply(erasure.to_json(), status=200 if erasure.is_done else 202)


def _user_id(text: str) -> str:
    if not USER_ID.fullmatch(text):
        raise ValidationError.of("sub", "Must be a user's id")
    return text
