"""How many bytes of one user's images are kept: originals, processed images and previews in our storages.

The asset store is asked, which holds the truth after deletes, crashes, restores and moves alike. A user may get over
the bound by the photos that are on their way, and by the images that are made of those. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.assets.store import AssetStore
from pipeline.errors import Forbidden
from pipeline.usecases.bounds import Bound

# One user's share of a fast network.
ADDED_IN_SECOND = 50_000_000
UNITS = (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000))


class Quota:
    """A bound on what is kept of one user."""

    def __init__(
        self, store: AssetStore, *, most_bytes: int, on_refused: Callable[[str], None] = lambda user_id: None
    ) -> None:
        """most_bytes: 0: no bound. on_refused: called with a user who has too much."""
        self._on_refused = on_refused
        self.most_bytes = most_bytes
        self._stored = Bound(most_bytes, ADDED_IN_SECOND, store.stored_bytes)

    async def check(self, user_id: str) -> None:
        """Return when the user may send another photo; Forbidden otherwise: waiting does not help."""
        used = await self._stored.reached(user_id)
        if used is not None:
            self._on_refused(user_id)
            raise Forbidden(f"Your photos use {in_words(used)} of {in_words(self.most_bytes)}; delete some")

    def known_bytes(self, user_id: str) -> int | None:
        """Return how many bytes of the user are kept as far as this process knows, None when there is no bound."""
        return self._stored.known(user_id) if self.most_bytes else None

    def add(self, user_id: str, stored_bytes: int) -> None:
        """Count an image that was stored."""
        self._stored.add(user_id, stored_bytes)


def in_words(number: int) -> str:
    """Return a number of bytes for people, as 1.2 GB."""
    unit, size = next((each for each in UNITS if number >= each[1]), ("bytes", 1))
    return f"{number} {unit}" if size == 1 else f"{number / size:.1f} {unit}"
