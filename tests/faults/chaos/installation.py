"""One installation: its processes, its keys in Redis, and the content of its asset store, read without the service."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pymongo
from bson import ObjectId

from tests.mongo_server import MongoServer
from tests.service import Service

FIELDS = ("userId", "category", "status", "fence", "excused", "processingJobId")
QUEUES = ("ai-processing", "notifications")


class ChaosService(Service):
    """A service that keeps its log over all its restarts.

    exit_codes: of the processes that were asked to end.
    """

    def __init__(self, data_dir: Path, ai_service_url: str, *, lease_seconds: float, **environment: str) -> None:
        super().__init__(data_dir, ai_service_url, **environment)
        self.lease_seconds = lease_seconds
        self.earlier: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []

    def start(self) -> None:
        self.earlier += self.lines
        super().start()

    def wait_for_end(self) -> None:
        """Wait until the process has ended as it was asked to."""
        self.exit_codes.append(self.wait())

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every line so far, with those of killed processes."""
        return self.earlier + self.lines


class Installation:
    """One installation with its store.

    prefix: of its keys in Redis, also the name of its database.
    folder: of its SQLite file, when it has no database.
    """

    def __init__(self, prefix: str, folder: Path, mongo: MongoServer | None, services: list[ChaosService]) -> None:
        self.prefix, self.folder, self.mongo, self.services = prefix, folder, mongo, services

    def base(self, queue: str) -> str:
        """Return the beginning of the queue's keys."""
        return f"{self.prefix}:{{{queue}}}:"

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every line of every process."""
        return [line for service in self.services for line in service.log]

    @contextmanager
    def _file(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.folder / "assets.sqlite", timeout=30)) as connection:
            yield connection

    @contextmanager
    def _database(self) -> Iterator[Any]:
        assert self.mongo is not None
        with pymongo.MongoClient[dict[str, Any]](self.mongo.uri(self.prefix)) as client:
            yield client[self.prefix]

    def count_unfinished(self) -> int:
        """Return how many assets are `processing`."""
        if self.mongo is None:
            with self._file() as file:
                return int(file.execute("SELECT count(*) FROM assets WHERE status = 'processing'").fetchone()[0])
        with self._database() as database:
            return int(database["assets"].count_documents({"status": "processing"}))

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return {asset id: {"userId", "category", "status", "fence", "excused", "processingJobId"}}."""
        if self.mongo is None:
            with self._file() as file:
                rows = file.execute(f"SELECT id, {', '.join(FIELDS)} FROM assets").fetchall()
            return {row[0]: dict(zip(FIELDS, row[1:], strict=True)) for row in rows}
        with self._database() as database:
            return {str(ObjectId(found["_id"])): found for found in database["assets"].find()}

    def stored_jobs(self, queue: str) -> tuple[set[str], set[str]]:
        """Return the ids of the jobs in the store: those to be done, and the dead letters."""
        kind = f"job of {queue}"
        if self.mongo is None:
            with self._file() as file:
                rows = file.execute("SELECT id, data FROM kept WHERE kind = ?", (kind,)).fetchall()
        else:
            with self._database() as database:
                found = list(database["kept"].find({"kind": kind}))
            rows = [(each["_id"].removeprefix(f"{kind} "), each["data"]) for each in found]
        dead = {each for each, data in rows if "failed" in json.loads(data)}
        return {each for each, _ in rows} - dead, dead
