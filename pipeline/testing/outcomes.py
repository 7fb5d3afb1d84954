"""Calls of which also an exception is an answer that a suite looks at."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any


def outcome_of(method: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Return the method, `async def` if it is, as a function that returns what it raises. name: "" for its own."""

    async def awaited(*args: Any) -> Any:
        try:
            return await method(*args)
        except Exception as error:
            return error

    def plain(*args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            return error

    function = awaited if iscoroutinefunction(method) else plain
    function.__name__ = name or method.__name__
    return function
