"""Calls `start` of one plugin before its first call, once, however many calls wait for it. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pipeline.errors import NotReady, asked_seconds, plugin_error_text
from pipeline.hooks.running_calls import ignore, is_temporary


class FirstStart:
    """The start of one plugin."""

    def __init__(
        self, name: str, call_start: Callable[[], Awaitable[object]] | None, on_start: Callable[[], None]
    ) -> None:
        """name: of the task, for the log.
        call_start: calls the plugin's `start`; None when it has none.
        on_start: called when the plugin has started.
        """
        self._name = name
        self._call_start = call_start
        self._on_start = on_start
        self.is_done = call_start is None
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Start the plugin unless it has started; raise NotReady, or any other exception of its `start`."""
        if self.is_done:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._start(), name=self._name)
            self._task.add_done_callback(ignore)
        # A caller that is cancelled must not cancel the start that the other callers wait for.
        await asyncio.shield(self._task)

    async def run_before_call(self) -> None:
        """Start the plugin unless it has started; NotReady when that fails."""
        try:
            await self.run()
        except NotReady:
            raise
        except Exception as error:
            raise NotReady(plugin_error_text(error)) from error

    async def _start(self) -> None:
        assert self._call_start is not None
        try:
            await self._call_start()
        except Exception as error:
            if is_temporary(error):
                seconds = asked_seconds(error)
                raise (
                    NotReady(plugin_error_text(error), seconds) if seconds else NotReady(plugin_error_text(error))
                ) from error
            raise
        self.is_done = True
        self._on_start()
