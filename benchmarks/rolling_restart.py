"""The requests and events that clients lose in a restart: python -m benchmarks.rolling_restart

Two processes of the service on one Redis and one store: behind nginx with a minimal configuration, behind nginx and
Caddy with the files of deploy/, and on one port without a proxy. Six clients without retries upload photos and read the
queue's state, half of them with a new connection for each request; three clients listen. Then both processes restart
one after the other, or one is killed (kill -9) and started again after a second. Needs nginx and Caddy on PATH.
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
# Requests before and after the restart.
BEFORE, AFTER = 60, 60
ROUNDS = 2
HEAD = ("in front", "what happens", "requests", "failed", "lost events", "p99, ms", "what failed")


@dataclass(frozen=True)
class Setup:
    """The proxy in front of the processes, and the seconds that they go on serving after SIGTERM."""

    name: str
    lame_duck_seconds: float
    proxy: Callable[[Path, Instances], Nginx | Caddy] | None = None


SETUPS = (
    Setup("minimal nginx", 0, lambda folder, instances: Nginx(folder, instances.ports, MINIMAL_CONF)),
    Setup("`deploy/nginx`", 5, lambda folder, instances: Nginx(folder, instances.ports)),
    Setup("`deploy/nginx`", 0, lambda folder, instances: Nginx(folder, instances.ports)),
    Setup("`deploy/caddy`", 5, lambda folder, instances: Caddy(folder, instances.ports)),
    Setup("`deploy/caddy`", 0, lambda folder, instances: Caddy(folder, instances.ports)),
    Setup("nothing, one port (`REUSE_PORT`)", 5),
    Setup("nothing, one port (`REUSE_PORT`)", 0),
)


async def restart(instances: Instances) -> None:
    """Restart all instances one after the other, ROUNDS times."""
    for _ in range(ROUNDS):
        await instances.roll()


async def kill(instances: Instances) -> None:
    """Kill and start one instance, ROUNDS times."""
    for _ in range(ROUNDS):
        await instances.kill_one()


async def measure(url: str, instances: Instances, fault: Callable[[Instances], Awaitable[None]], keyed: bool) -> Seen:
    """Return the results of the clients before, during and after the fault.

    keyed: see tests.rolling.Load.
    """
    async with Load(url, image=make_noise_image(PHOTO_BYTES), keyed=keyed) as load:
        await load.until(BEFORE)
        await fault(instances)
        await load.until(AFTER)
    return load.seen


def row(setup: Setup, what: str, seen: Seen) -> str:
    """Return one line of the table."""
    failures = ", ".join(f"{count} x {words}" for words, count in seen.failures.most_common(3))
    figures = f"{seen.requests} | {seen.failed} | {len(seen.lost)} of {len(seen.uploaded)} | {seen.p99_ms:.0f}"
    return f"| {setup.name}, lame duck {setup.lame_duck_seconds:g} s | {what} | {figures} | {failures or '-'} |"


async def slow_and_large(url: str) -> str:
    """Return the answers to a photo from a slow phone and to a large photo."""
    slow, large = await asyncio.gather(
        slow_upload(url, make_noise_image(100_000), 10_000),
        slow_upload(url, make_noise_image(LARGE_BYTES), LARGE_BYTES),
        return_exceptions=True,
    )
    answers = [f"{result[0]}" if isinstance(result, tuple) else type(result).__name__ for result in (slow, large)]
    return f"100 KB at 10 KB/s: {answers[0]}; 3 MB: {answers[1]}"


def main() -> None:
    """Print the table."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    notes = []
    for setup in SETUPS:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder, lame_duck = Path(name), str(setup.lame_duck_seconds)
            one_port = setup.proxy is None
            instances = stack.enter_context(Instances(folder, is_one_port=one_port, LAME_DUCK_SECONDS=lame_duck))
            url = instances.services[0].url
            if setup.proxy is not None:
                url = stack.enter_context(setup.proxy(folder, instances)).url
            print(row(setup, "rolling restart", asyncio.run(measure(url, instances, restart, False))), flush=True)
            if setup.lame_duck_seconds or "minimal" in setup.name:
                print(row(setup, "kill -9 of one", asyncio.run(measure(url, instances, kill, False))), flush=True)
                what = "kill -9 of one, clients repeat once with their key"
                print(row(setup, what, asyncio.run(measure(url, instances, kill, True))), flush=True)
                notes.append(f"- {setup.name}: {asyncio.run(slow_and_large(url))}")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
