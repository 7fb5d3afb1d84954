"""The results of the checks, and the state that they examine."""

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
    """The results of the checks.

    broken: every broken promise, with evidence.
    """

    broken: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def expect(self, is_true: bool, promise: str, evidence: object = "") -> None:
        if not is_true:
            self.broken.append(f"{promise}: {str(evidence)[:600]}")

    def add(self, other: Report, prefix: str) -> None:
        """Take over the results of another report, under names that begin with the prefix."""
        self.broken += [prefix + promise for promise in other.broken]
        self.figures |= {prefix + name: value for name, value in other.figures.items()}


@dataclass
class Seen:
    """The state of one installation at the end of the run.

    documents: the assets as the store has them.
    assets: the assets of each user, as the API shows them to that user.
    """

    installation: Installation
    users: list[User]
    operator: Operator
    documents: dict[str, dict[str, Any]]
    assets: dict[str, dict[str, dict[str, Any]]]

    @classmethod
    async def by(cls, installation: Installation, users: list[User], operator: Operator) -> Seen:
        """Read the store and, as each user, the API."""
        documents = await asyncio.to_thread(installation.documents)
        url = installation.services[-1].url
        assets = {user.name: {asset["id"]: asset for asset in await user.assets(url)} for user in users}
        return cls(installation, users, operator, documents, assets)

    @property
    def all_assets(self) -> list[dict[str, Any]]:
        """The assets of all users."""
        return [asset for assets in self.assets.values() for asset in assets.values()]

    def is_right(self, asset_id: str, reported: Iterable[tuple[Any, ...]], final: tuple[Any, ...]) -> bool:
        """True when each reported state of an asset, (status, ...), is its final state.

        An asset that the operator has run again may have failed before.
        """
        others = set(reported) - {final}
        return not others or asset_id in self.operator.rerun and {each[0] for each in others} == {"failed"}
