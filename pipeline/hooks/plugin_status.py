"""The state of one plugin as operators see it, and the result of its own `check`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic

from pipeline.errors import plugin_error_text
from pipeline.hooks.breaker import BLOCKING_CAUSE
from pipeline.hooks.methods import Method
from pipeline.hooks.running_calls import RunningCalls

# How often the `check` of a plugin is called at most, whatever asks for its health.
CHECK_EVERY_SECONDS = 10.0


class PluginStatus:
    """Says whether a plugin works, is held, or has calls that do not end."""

    def __init__(self, methods: Mapping[str, Method], running: RunningCalls) -> None:
        self._methods = methods
        self._running = running

    @property
    def state(self) -> str:
        """ok | held | stuck | blocking.

        stuck: calls whose time was over go on, in threads or on the event loop.
        blocking: the last call of a method blocked the event loop.
        """
        if any(method.breaker.is_held for method in self._methods.values()):
            return "held"
        if self._running.is_stuck:
            return "stuck"
        return "blocking" if self.reason else "ok"

    @property
    def reason(self) -> str:
        """Which methods are held and why, and which block the event loop; "" when none does."""
        reasons = []
        for name, method in self._methods.items():
            breaker = method.breaker
            if breaker.is_held:
                cause = breaker.cause.removesuffix(f": {breaker.reason}")
                reasons.append(f"{name}: {breaker.reason}" + (f" ({cause})" if cause else ""))
            elif breaker.blocks:
                reasons.append(f"{name}: {BLOCKING_CAUSE} (calls in a row: {breaker.blocks})")
        return "; ".join(reasons)

    @property
    def held_seconds(self) -> float:
        """How long until a held method may be called or tried again; 0 when none is held."""
        breakers = [method.breaker for method in self._methods.values()]
        return max((breaker.left_seconds for breaker in breakers if breaker.is_held), default=0.0)


class PluginHealth:
    """The result of a plugin's `check`, at most CHECK_EVERY_SECONDS old."""

    def __init__(self, check: Callable[[], Awaitable[object]] | None) -> None:
        """check: calls the plugin's `check`; None when it has none."""
        self._check = check
        self._latest: tuple[float, asyncio.Future[str]] | None = None

    async def fault(self) -> str:
        """Return why the check fails, "" when it passes or there is none."""
        if self._check is None:
            return ""
        if self._latest is None or self._latest[0] <= monotonic():
            until = monotonic() + CHECK_EVERY_SECONDS
            # All callers of this time share the result.
            self._latest = until, asyncio.ensure_future(_fault_of(self._check()))
        return await asyncio.shield(self._latest[1])

    def forget(self) -> None:
        """Check anew at the next call."""
        self._latest = None


async def _fault_of(check: Awaitable[object]) -> str:
    try:
        answer = await check
    except Exception as error:
        return plugin_error_text(error)
    return "check returned False" if answer is False else ""
