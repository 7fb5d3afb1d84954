"""Calls whose exceptions are results that a suite checks."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any


def outcome_of(method: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Return a function that calls the method and returns its exceptions; `async def` if the method is.

    name: of the function, "" for that of the method.
    """

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
