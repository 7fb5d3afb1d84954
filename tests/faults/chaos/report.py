"""What was found, and what it was found in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.chaos.clients import User
from tests.faults.chaos.installation import Installation
from tests.faults.chaos.operator import Operator


@dataclass
class Report:
    """What was found. broken: every promise that was not kept, with evidence."""

    broken: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def expect(self, is_true: bool, promise: str, evidence: object = "") -> None:
        if not is_true:
            self.broken.append(f"{promise}: {str(evidence)[:600]}")

    def add(self, other: Report, prefix: str) -> None:
        """Take over what another one says, under names that begin with the prefix."""
        self.broken += [prefix + promise for promise in other.broken]
        self.figures |= {prefix + name: value for name, value in other.figures.items()}


@dataclass
class Seen:
    """One installation once all is at rest. assets: of each user, as the user sees them. documents: as the store has
    them.
    """

    installation: Installation
    users: list[User]
    operator: Operator
    documents: dict[str, dict[str, Any]]
    assets: dict[str, dict[str, dict[str, Any]]]

    @classmethod
    async def by(cls, installation: Installation, users: list[User], operator: Operator) -> Seen:
        """Look at the store and, as each user, through the API."""
        documents = await asyncio.to_thread(installation.documents)
        url = installation.services[-1].url
        assets = {user.name: {asset["id"]: asset for asset in await user.assets(url)} for user in users}
        return cls(installation, users, operator, documents, assets)

    @property
    def all_assets(self) -> list[dict[str, Any]]:
        """All of all users."""
        return [asset for assets in self.assets.values() for asset in assets.values()]

    def is_right(self, asset_id: str, told: Iterable[tuple[Any, ...]], final: tuple[Any, ...]) -> bool:
        """True when all that was told of an asset, (status, ...) each, is its final state. One that the operator has
        run again may have failed before.
        """
        others = set(told) - {final}
        return not others or asset_id in self.operator.rerun and {each[0] for each in others} == {"failed"}
