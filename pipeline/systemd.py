"""Messages to systemd where it wants them (sd_notify(3)): ready, stopping, alive.

`systemctl restart` then returns when the process serves, and systemd restarts a process whose event loop hangs.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send a state such as READY=1 to systemd, if it has asked for messages."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            # Do not block when systemd does not read.
            channel.setblocking(False)
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())


def watchdog_seconds() -> float:
    """Return the interval within which systemd wants a sign of life (WatchdogSec), 0 for none."""
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000


async def keep_alive() -> None:
    """Send signs of life for ever, twice per interval, as sd_notify(3) advises."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(watchdog_seconds() / 2)
