"""Do our clients get all events through hostile proxies? python -m benchmarks.rooms.ladder

One service and both clients with their default times, each behind each of four hostile proxies (one refuses an Upgrade,
one accepts it and passes no byte, one buffers responses, one cuts every connection after 20 s), and 100 uploads for
each client, spread over 45 s. After that the proxies pass everything.

Prints a Markdown table: the events that were lost (must be 0) and repeated (must be 0), the seconds from the start
until the client used the best transport that works, the time from an asset's finishedAt to its event, and the seconds
from the change of the proxy until the client was back on the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.client import Client
from pipeline.supervision import cancel
from tests.factories import make_image, make_token
from tests.hostile_proxy import HostileProxy
from tests.service import AiService, Service

CLIENT = Path(__file__).parents[2] / "clients" / "js" / "pipeline-client.js"
BEST = {"refuses-upgrade": "sse", "mute": "sse", "buffers": "poll", "cuts": "socket"}
UPLOAD_SECONDS = 45.0
LONGEST_SECONDS = 90.0
CLIMB_SECONDS = 300.0
LISTENING = """
const [path, url, token] = process.argv.slice(1);
const { PipelineClient } = await import(path);
const client = new PipelineClient({ url, token });
for (const name of ["transport", "asset_processed", "error"]) {
  client.on(name, (detail) => console.log(JSON.stringify({ name, ...detail, message: detail.message })));
}
client.connect();
"""


@dataclass
class Listener:
    """One client behind one proxy, and what it reported.

    mode: of the proxy.
    transports: (when the client changed to it, its name).
    received: asset id -> seconds from finishedAt to the event.
    honest_at: when the proxy began to pass everything.
    """

    client: str
    mode: str
    transports: list[tuple[float, str]] = field(default_factory=list)
    received: dict[str, float] = field(default_factory=dict)
    repeats: int = 0
    uploaded: set[str] = field(default_factory=set)
    honest_at: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def user(self) -> str:
        return f"{self.client}-{self.mode}"

    def is_on(self, transport: str) -> bool:
        """Return whether the client uses that transport now."""
        return bool(self.transports) and self.transports[-1][1] == transport

    def on_transport(self, name: str) -> None:
        """Record that the client changed to a transport."""
        self.transports.append((time.monotonic(), name))
        self.changed.set()

    def on_event(self, event: dict[str, Any]) -> None:
        """Record an event."""
        self.repeats += event["assetId"] in self.received
        late = time.time() - datetime.fromisoformat(event["timestamp"]).timestamp()
        self.received.setdefault(event["assetId"], late)
        self.changed.set()

    async def until(self, is_so: Any, seconds: float) -> None:
        """Return once `is_so` answers true, or after that many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_so():
                    self.changed.clear()
                    await self.changed.wait()

    def row(self, begun_at: float) -> str:
        """Return the client's row of the table.

        begun_at: when the client started (time.monotonic).
        """
        lates = sorted(self.received.values()) or [float("nan")]
        reached = [at - begun_at for at, name in self.transports if name == BEST[self.mode]]
        honest = self.honest_at or 0.0
        back = [max(0.0, at - honest) for at, name in self.transports if name == "socket" and at >= honest]
        climbed = f"{back[-1]:.0f}" if back else "stays" if self.is_on("socket") else "never"
        figures = [f"{len(self.uploaded - self.received.keys())}", f"{self.repeats}"]
        figures += [BEST[self.mode], f"{reached[0]:.1f}" if reached else "never"]
        figures += [f"{statistics.median(lates):.2f}", f"{lates[-1]:.1f}", climbed]
        return f"| {' | '.join([self.client, self.mode, str(len(self.uploaded)), *figures])} |"


async def listen_in_js(listener: Listener, url: str, token: str) -> None:
    """Run the JavaScript client in Node until cancelled."""
    node = shutil.which("node")
    assert node is not None, "needs Node"
    process = await asyncio.create_subprocess_exec(
        node, "--input-type=module", "--eval", LISTENING, str(CLIENT), url, token, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            report = json.loads(line)
            if report["name"] == "transport":
                listener.on_transport(report["transport"])
            elif report["name"] == "asset_processed":
                listener.on_event(report)
            else:
                print(f"{listener.user}: {report}")
    finally:
        process.kill()
        await process.wait()


async def listen_in_python(listener: Listener, url: str, token: str) -> None:
    """Run the Python client until cancelled."""
    async with Client(url, token, on_transport=listener.on_transport) as client:
        async for event in client.events():
            listener.on_event(event)


CLIENTS = {"js": listen_in_js, "python": listen_in_python}


async def upload(listener: Listener, url: str, count: int, session: aiohttp.ClientSession) -> None:
    """Upload that many photos of the listener's user, spread over UPLOAD_SECONDS."""
    headers = {"Authorization": f"Bearer {make_token(listener.user, expires_in=7200)}"}
    begun_at = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, begun_at + number * UPLOAD_SECONDS / count - time.monotonic()))
        form = aiohttp.FormData({"category": "lego"})
        form.add_field("image", make_image(), filename="photo.jpg")
        async with session.post(f"{url}/api/assets/analyze-queue", data=form, headers=headers) as reply:
            reply.raise_for_status()
            listener.uploaded.add((await reply.json())["data"]["assetId"])


async def follow(listener: Listener, url: str, count: int) -> str:
    """Run one client behind its proxy and return its row of the table."""
    token = make_token(listener.user, expires_in=7200)
    async with HostileProxy(url, listener.mode) as proxy, aiohttp.ClientSession() as session:
        begun_at = time.monotonic()
        task = asyncio.create_task(CLIENTS[listener.client](listener, proxy.url, token))
        try:
            await listener.until(lambda: listener.transports, LONGEST_SECONDS)
            await upload(listener, url, count, session)
            await listener.until(lambda: listener.uploaded <= listener.received.keys(), LONGEST_SECONDS)
            listener.honest_at = time.monotonic()
            proxy.mode = "honest"
            await listener.until(lambda: listener.is_on("socket"), CLIMB_SECONDS)
        finally:
            await cancel([task])
    return listener.row(begun_at)


async def run(url: str, clients: list[str], events: int) -> list[str]:
    """Run all clients behind all proxies at the same time and return the table."""
    listeners = [Listener(client, mode) for client in clients for mode in BEST]
    rows = await asyncio.gather(*(follow(listener, url, events) for listener in listeners))
    head = "| client | proxy | events | lost | twice | transport | s until it | late, median s | most s | s to climb |"
    return [head, "|---|---|---|---|---|---|---|---|---|---|", *rows]


def main() -> None:
    """Start a service, run all clients and print the table."""
    parser = argparse.ArgumentParser(description="Our clients behind hostile proxies.")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--events", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, AiService() as ai_service:
        with Service(Path(folder), ai_service.url) as service:
            print("\n".join(asyncio.run(run(service.url, given.clients, given.events))))


if __name__ == "__main__":
    main()
