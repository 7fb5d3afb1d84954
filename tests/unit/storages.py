"""Calls of a storage whose methods a test defines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tornado.ioloop import IOLoop

from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.storage_calls import StorageCalls
from pipeline.metrics import Metrics
from pipeline.tracing import OFF

Make = Callable[..., StorageCalls]


@contextmanager
def storage_calls(io_loop: IOLoop) -> Iterator[Make]:
    """Yield a function that returns the calls of a storage with these methods; close them at the end."""
    made = []

    def make(seconds: float = 5, **methods: Callable[..., Any]) -> StorageCalls:
        plugin = BoundPlugin("storage", "x", object(), methods, threads=2, metrics=Metrics())
        made.append(StorageCalls(plugin, seconds, OFF))
        return made[-1]

    yield make
    for each in made:
        io_loop.run_sync(each.close)
