"""A proxy of which a test changes the destination while the client connects."""

from __future__ import annotations

import asyncio

from pipeline.supervision import cancel
from tests.integration.scripted_service import WAIT_SECONDS


class Switch:
    """A proxy that forwards each new connection to `port`.

    It closes the connection when `port` is 0. It leaves the connection without a reply when `port` is None.
    """

    def __init__(self, port: int | None) -> None:
        self.port = port
        self._unanswered = 0
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Switch:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await cancel(self._tasks)

    async def wait_unanswered(self, count: int) -> None:
        """Return when at least so many connections were left without a reply."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self._unanswered >= count)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            if self.port is None:
                async with self._changed:
                    self._unanswered += 1
                    self._changed.notify_all()
                await reader.read()
            elif self.port:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
                writers.append(far_writer)
                await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
        except OSError:
            pass
        finally:
            for each in writers:
                each.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
