"""What systemd is told of the process, where it asks for that (sd_notify(3)): that it serves, stops, and lives.

So `systemctl restart` returns when the process serves, and a process whose event loop hangs is started again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send a state as READY=1 to the manager, if there is one that wants it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())


def watchdog_seconds() -> float:
    """Return within how much time the manager wants a sign of life, 0 when it wants none (WatchdogSec)."""
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000


async def keep_alive() -> None:
    """Give a sign of life for ever, as often as sd_notify(3) advises."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(watchdog_seconds() / 2)
