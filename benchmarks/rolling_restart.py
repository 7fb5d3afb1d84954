"""What clients notice of restarts: python -m benchmarks.rolling_restart

Two processes of the service on one Redis and one store, behind nginx as a newcomer sets it up, behind nginx and Caddy
with the files of deploy/, and on one port without a proxy. Six clients that repeat nothing upload photos and ask for
the queue's state, half of them on a new connection each time; three listen. Then both processes restart one after the
other, or one is killed (kill -9) and started again after a second. nginx and Caddy are needed on PATH.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.factories import make_noise_image
from tests.proxies import MINIMAL_CONF, Caddy, Nginx
from tests.rolling import Instances, Load, Seen, slow_upload

PHOTO_BYTES = 300_000
LARGE_BYTES = 3_000_000
# Requests before and after what is measured.
BEFORE, AFTER = 60, 60
ROUNDS = 2
HEAD = ("in front", "what happens", "requests", "failed", "lost events", "p99, ms", "what failed")


@dataclass(frozen=True)
class Setup:
    """What stands in front of the processes, and how long they serve on after SIGTERM."""

    name: str
    lame_duck_seconds: float
    proxy: Callable[[Path, Instances], Nginx | Caddy] | None = None


SETUPS = (
    Setup("nginx, a newcomer's", 0, lambda folder, them: Nginx(folder, them.ports, MINIMAL_CONF)),
    Setup("`deploy/nginx`", 5, lambda folder, them: Nginx(folder, them.ports)),
    Setup("`deploy/nginx`", 0, lambda folder, them: Nginx(folder, them.ports)),
    Setup("`deploy/caddy`", 5, lambda folder, them: Caddy(folder, them.ports)),
    Setup("`deploy/caddy`", 0, lambda folder, them: Caddy(folder, them.ports)),
    Setup("nothing, one port (`REUSE_PORT`)", 5),
    Setup("nothing, one port (`REUSE_PORT`)", 0),
)


async def restart(them: Instances) -> None:
    """Both, one after the other, a few times."""
    for _ in range(ROUNDS):
        await them.roll()


async def kill(them: Instances) -> None:
    """One of them, a few times."""
    for _ in range(ROUNDS):
        await them.kill_one()


async def measure(url: str, them: Instances, happens: Callable[[Instances], Awaitable[None]], keyed: bool) -> Seen:
    """Return what the clients have noticed."""
    async with Load(url, image=make_noise_image(PHOTO_BYTES), keyed=keyed) as load:
        await load.until(BEFORE)
        await happens(them)
        await load.until(AFTER)
    return load.seen


def row(setup: Setup, what: str, seen: Seen) -> str:
    """Return one line of the table."""
    failures = ", ".join(f"{count} x {words}" for words, count in seen.failures.most_common(3))
    figures = f"{seen.requests} | {seen.failed} | {len(seen.lost)} of {len(seen.uploaded)} | {seen.p99_ms:.0f}"
    return f"| {setup.name}, lame duck {setup.lame_duck_seconds:g} s | {what} | {figures} | {failures or '-'} |"


async def slow_and_large(url: str) -> str:
    """Return what becomes of a slow phone's photo, and of a large one."""
    slow, large = await asyncio.gather(
        slow_upload(url, make_noise_image(100_000), 10_000),
        slow_upload(url, make_noise_image(LARGE_BYTES), LARGE_BYTES),
        return_exceptions=True,
    )
    said = [f"{found[0]}" if isinstance(found, tuple) else type(found).__name__ for found in (slow, large)]
    return f"100 KB at 10 KB/s: {said[0]}; 3 MB: {said[1]}"


def main() -> None:
    """Print the table."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    notes = []
    for setup in SETUPS:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder, lame_duck = Path(name), str(setup.lame_duck_seconds)
            one_port = setup.proxy is None
            them = stack.enter_context(Instances(folder, is_one_port=one_port, LAME_DUCK_SECONDS=lame_duck))
            url = them.services[0].url
            if setup.proxy is not None:
                url = stack.enter_context(setup.proxy(folder, them)).url
            print(row(setup, "rolling restart", asyncio.run(measure(url, them, restart, False))), flush=True)
            if setup.lame_duck_seconds or "newcomer" in setup.name:
                print(row(setup, "kill -9 of one", asyncio.run(measure(url, them, kill, False))), flush=True)
                what = "kill -9 of one, clients repeat once with their key"
                print(row(setup, what, asyncio.run(measure(url, them, kill, True))), flush=True)
                notes.append(f"- {setup.name}: {asyncio.run(slow_and_large(url))}")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
