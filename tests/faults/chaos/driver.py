"""What goes wrong, and when: decided by the seed alone, before the run begins."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass

from redis.exceptions import RedisError

from tests.faults.chaos.world import LEASE_SECONDS, ChaosService, World

# How often each kind is chosen, relative to the others.
WEIGHTS = {
    "kill service": 4,
    "terminate service": 3,
    "stop service": 4,
    "kill children": 2,
    "kill redis": 2,
    "stop redis": 2,
    "pause redis": 2,
    "wipe redis": 2,
    "lose redis": 1,
    "drop redis connections": 3,
    "stop store": 2,
    "kill store": 2,
    "lock store": 2,
    "ai fails": 3,
    "ai asks to wait": 2,
    "ai sends garbage": 2,
    "ai hangs": 1,
    "ai cuts": 2,
    "kill ai": 1,
    "cut link": 4,
    "hold link": 3,
    "slow link": 3,
    "reset link": 2,
    "late commit": 3,
}
ON_A_SERVICE = {"kill service", "terminate service", "stop service", "kill children", "late commit"}
ON_THE_OTHER_STORE = {"sqlite": {"stop store", "kill store"}, "mongo": {"lock store"}}
ON_A_LINK = {"cut link", "hold link", "slow link", "reset link"}
KEEPS_BACK = {"hold link", "slow link"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. at: seconds after the start. seconds: how long. process, link: whose and which."""

    at: float
    kind: str
    seconds: float
    process: int
    link: str


def make_plan(
    seed: int, count: int, processes: int, store: str, *, gap_seconds: float = 1.2, kinds: set[str] | None = None
) -> list[Fault]:
    """Return so many faults in order of time. kinds: only these."""
    chance = random.Random(seed)
    usable = {
        kind: weight
        for kind, weight in WEIGHTS.items()
        if (kinds is None or kind in kinds) and kind not in ON_THE_OTHER_STORE[store]
    }
    links = ("redis", "ai", "store") if store == "mongo" else ("redis", "ai")
    plan, at = [], 1.0
    for _ in range(count):
        (kind,) = chance.choices(list(usable), list(usable.values()))
        plan.append(Fault(at, kind, chance.uniform(0.5, 4), chance.randrange(processes), chance.choice(links)))
        at += chance.expovariate(1 / gap_seconds)
    return plan


class Driver:
    """Causes the faults of a plan and heals each."""

    def __init__(self, world: World, plan: list[Fault]) -> None:
        self.world, self.plan = world, plan
        self.done: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ways: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill service": self._kill_service,
            "terminate service": self._terminate_service,
            "stop service": self._stop_service,
            "kill children": self._kill_children,
            "kill redis": self._kill_redis,
            "lose redis": self._kill_redis,
            "stop redis": self._stop_redis,
            "pause redis": self._tell_redis,
            "wipe redis": self._tell_redis,
            "drop redis connections": self._tell_redis,
            "stop store": self._stop_store,
            "kill store": self._kill_store,
            "lock store": self._lock_store,
            "ai fails": self._tell_ai,
            "ai asks to wait": self._tell_ai,
            "ai sends garbage": self._tell_ai,
            "ai hangs": self._tell_ai,
            "ai cuts": self._tell_ai,
            "kill ai": self._kill_ai,
            "cut link": self._tamper,
            "hold link": self._tamper,
            "slow link": self._tamper,
            "reset link": self._tamper,
            "late commit": self._late_commit,
        }

    async def run(self) -> None:
        """Return once every fault has been caused and healed."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in self.plan:
                await asyncio.sleep(max(0, started_at + fault.at - loop.time()))
                group.create_task(self._cause(fault))

    async def _cause(self, fault: Fault) -> None:
        # One fault at a time on one thing: it cannot be stopped and started at once.
        async with self._locks[self._target(fault)]:
            await self._ways[fault.kind](fault)
        self.done[fault.kind] += 1

    @staticmethod
    def _target(fault: Fault) -> str:
        if fault.kind in ON_A_SERVICE:
            return f"service {fault.process}"
        if fault.kind in ON_A_LINK:
            return f"{fault.process}-{fault.link}"
        return fault.kind.split()[0] if fault.kind.startswith("ai") else fault.kind.split()[1]

    async def _kill_service(self, fault: Fault) -> None:
        service = self.world.services[fault.process]
        await asyncio.to_thread(service.kill)
        await asyncio.sleep(fault.seconds / 2)
        await asyncio.to_thread(service.start)

    async def _terminate_service(self, fault: Fault) -> None:
        service = self.world.services[fault.process]
        await asyncio.to_thread(service.stop)
        await asyncio.to_thread(service.start)

    async def _stop_service(self, fault: Fault) -> None:
        service = self.world.services[fault.process]
        service.signal(signal.SIGSTOP)
        # Past its leases, so that others take its jobs over and it comes back with late results.
        await asyncio.sleep(LEASE_SECONDS + fault.seconds)
        service.signal(signal.SIGCONT)

    async def _kill_children(self, fault: Fault) -> None:
        self.world.kill_children(fault.process)

    async def _kill_redis(self, fault: Fault) -> None:
        redis = self.world.redis
        await asyncio.to_thread(redis.kill, loses_data=fault.kind == "lose redis")
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(redis.start)

    async def _stop_redis(self, fault: Fault) -> None:
        await _stop_for(self.world.redis.pid, fault.seconds)

    async def _tell_redis(self, fault: Fault) -> None:
        commands: dict[str, tuple[str | int, ...]] = {
            "pause redis": ("CLIENT", "PAUSE", round(fault.seconds * 1000), "ALL"),
            "wipe redis": ("FLUSHALL",),
            "drop redis connections": ("CLIENT", "KILL", "TYPE", "normal" if fault.process else "pubsub"),
        }
        try:
            await asyncio.to_thread(self.world.redis.client().execute_command, *commands[fault.kind])
        except RedisError:
            pass  # our own connection was cut with the others
        if fault.kind == "pause redis":
            await asyncio.sleep(fault.seconds)

    async def _stop_store(self, fault: Fault) -> None:
        assert self.world.mongo is not None
        await _stop_for(self.world.mongo.pid, fault.seconds)

    async def _kill_store(self, fault: Fault) -> None:
        assert self.world.mongo is not None
        await asyncio.to_thread(self.world.mongo.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.world.mongo.start)

    async def _lock_store(self, fault: Fault) -> None:
        await asyncio.to_thread(self.world.lock_store, fault.seconds)

    async def _tell_ai(self, fault: Fault) -> None:
        replies: dict[str, dict[str, object]] = {
            "ai fails": {"status": 503, "times": 20},
            "ai asks to wait": {"status": 429, "headers": {"Retry-After": "1"}, "times": 3},
            "ai sends garbage": {"body": "<html>", "times": 2},
            "ai cuts": {"cut": True, "times": 10},
        }
        if fault.kind in replies:
            await asyncio.to_thread(self.world.ai.order, replies=[replies[fault.kind]])
            await asyncio.sleep(fault.seconds)
            # An open breaker asks so seldom that the rest of the replies would last for minutes.
            await asyncio.to_thread(self.world.ai.order, forgets=True)
            return
        await asyncio.to_thread(self.world.ai.order, held=True)
        await asyncio.sleep(fault.seconds * 2)
        await asyncio.to_thread(self.world.ai.order, held=False)

    async def _kill_ai(self, fault: Fault) -> None:
        await self.world.count_provider_calls()
        await asyncio.to_thread(self.world.ai.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.world.ai.start)

    async def _tamper(self, fault: Fault) -> None:
        link = self.world.links[f"{fault.process}-{fault.link}"]
        way = {
            "cut link": link.cut,
            "hold link": link.hold,
            "slow link": lambda: link.slow(300),
            "reset link": link.reset,
        }[fault.kind]
        # Toxiproxy 2.12 never lets go of what it keeps back from a server that was killed meanwhile.
        async with self._locks[fault.link] if fault.kind in KEEPS_BACK else nullcontext():
            await asyncio.to_thread(way)
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(link.heal)

    async def _late_commit(self, fault: Fault) -> None:
        """Keep what a process is about to commit from the store until others have done its jobs."""
        service, ai_delay_seconds = self.world.services[fault.process], self.world.ai_delay_ms / 1000
        # Long enough for running jobs to come to their commit, and then for others to take them over.
        to_commit, to_be_done = ai_delay_seconds + 0.1, LEASE_SECONDS + 2
        await asyncio.to_thread(service.wait_log, "job_claimed", len(service.find("job_claimed")) + 1)
        await asyncio.sleep(ai_delay_seconds / 4)
        if self.world.mongo is None:
            await self._stop_at_the_lock(service, to_commit, to_be_done)
            return
        store, redis = (self.world.links[f"{fault.process}-{name}"] for name in ("store", "redis"))
        links = self._locks[f"{fault.process}-store"], self._locks[f"{fault.process}-redis"]
        async with links[0], links[1], self._locks["store"]:
            await asyncio.to_thread(store.hold)
            await asyncio.sleep(to_commit)
            await asyncio.to_thread(redis.cut)
            await asyncio.sleep(to_be_done)
            await asyncio.to_thread(store.heal)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(redis.heal)

    async def _stop_at_the_lock(self, service: ChaosService, to_commit: float, to_be_done: float) -> None:
        """Stop the process while its commits wait for the locked file; they are written when it goes on."""
        async with self._locks["store"]:
            locking = asyncio.create_task(asyncio.to_thread(self.world.lock_store, to_commit + 0.3))
            await asyncio.sleep(to_commit)
            service.signal(signal.SIGSTOP)
            await locking
        await asyncio.sleep(to_be_done)
        service.signal(signal.SIGCONT)


async def _stop_for(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGCONT)
