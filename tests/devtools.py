"""A connection to one tab of Chromium by the DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import aiohttp

CONTEXT_GONE = re.compile("context|collected|navigated", re.IGNORECASE)


class ContextGone(AssertionError):
    """Another document is replacing the document of the call."""


class DevTools:
    """Calls methods of the protocol and records the console of the tab.

    problems: the errors, exceptions and violations of the Content-Security-Policy in the console.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.problems: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a DevTools method and return its result."""
        self._calls += 1
        reply = self._replies[self._calls] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        found = await reply
        if "error" in found:
            raise (ContextGone if CONTEXT_GONE.search(found["error"]["message"]) else AssertionError)(found["error"])
        result: dict[str, Any] = found["result"]
        return result

    async def evaluate(self, script: str) -> Any:
        """Run JavaScript in the page and return its JSON value; a promise is awaited."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def close(self) -> None:
        """Stop reading the tab's messages."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._replies.pop(data["id"]).set_result(data)
            elif data["method"] == "Runtime.exceptionThrown":
                details = data["params"]["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description") or details["text"])
            elif data["method"] == "Log.entryAdded" and data["params"]["entry"]["level"] == "error":
                entry = data["params"]["entry"]
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
