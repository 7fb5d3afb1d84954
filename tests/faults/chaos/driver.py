"""Causes the faults of a plan and heals each."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from itertools import cycle

from redis.exceptions import RedisError

from tests.fake_receiver import Reply
from tests.faults.chaos.installation import ChaosService
from tests.faults.chaos.operator import Operator
from tests.faults.chaos.own_redis import DAMAGES
from tests.faults.chaos.plan import Caused, Fault
from tests.faults.chaos.world import World, signal_to
from tests.redis_server import RedisServer

DELAYS = {"stall link", "slow link"}


class Driver:
    """Causes each fault at its time, and heals it.

    Many methods because each kind of fault has its own.

    history: the faults that were caused, and when.
    """

    def __init__(self, world: World, plan: list[Fault], operator: Operator) -> None:
        self.world, self.plan, self.operator = world, plan, operator
        self.history: list[Caused] = []
        damaging = [fault.at for fault in plan if fault.kind.startswith("damage")]
        self.damages = dict(zip(damaging, cycle(DAMAGES)))
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._causes = self._cause_of_each_kind()

    def _cause_of_each_kind(self) -> dict[str, Callable[[Fault], Awaitable[None]]]:
        return {
            "kill service": self._kill_service,
            "terminate service": self._terminate_service,
            "terminate group": self._terminate_group,
            "stop service": self._stop_service,
            "kill children": self._kill_children,
            "kill redis": self._kill_redis,
            "lose redis": self._kill_redis,
            "stop redis": self._stop_redis,
            "pause redis": self._command_redis,
            "wipe redis": self._command_redis,
            "wipe redis while paused": self._lose_while_paused,
            "drop redis connections": self._command_redis,
            "kill own redis": self._kill_own_redis,
            "damage own redis": self._kill_own_redis,
            "damage own redis while paused": self._lose_while_paused,
            "stop own redis": self._stop_own_redis,
            "stop store": self._stop_store,
            "kill store": self._kill_store,
            "lock store": self._lock_store,
            "ai fails": self._disturb_ai,
            "ai asks to wait": self._disturb_ai,
            "ai sends garbage": self._disturb_ai,
            "ai hangs": self._disturb_ai,
            "ai cuts": self._disturb_ai,
            "kill ai": self._kill_ai,
            "receiver fails": self._disturb_receiver,
            "receiver hangs": self._disturb_receiver,
            "receiver refuses": self._disturb_receiver,
            "remove dead letter": self._use_dead_letter,
            "rerun dead letter": self._use_dead_letter,
            "cut link": self._disturb_link,
            "stall link": self._disturb_link,
            "slow link": self._disturb_link,
            "reset link": self._disturb_link,
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

    @property
    def done(self) -> Counter[str]:
        """How many of each kind were caused and healed."""
        return Counter(caused.fault.kind for caused in self.history)

    async def _cause(self, fault: Fault) -> None:
        async with self._locks[fault.target]:
            began_at = time.time()
            await self._causes[fault.kind](fault)
            self.history.append(Caused(fault, began_at, time.time()))

    async def _kill_service(self, fault: Fault) -> None:
        service = self.world.services[fault.process]
        await asyncio.to_thread(service.kill)
        await asyncio.sleep(fault.seconds / 2)
        await asyncio.to_thread(service.start)

    async def _terminate_service(self, fault: Fault) -> None:
        service = self.world.services[fault.process]
        service.signal(signal.SIGTERM)
        await asyncio.to_thread(service.wait_for_end)
        await asyncio.to_thread(service.start)

    async def _terminate_group(self, fault: Fault) -> None:
        await asyncio.to_thread(self.world.terminate_group, fault.process)
        await asyncio.to_thread(self.world.services[fault.process].start)

    async def _stop_service(self, fault: Fault) -> None:
        service = self.world.services[fault.process]
        service.signal(signal.SIGSTOP)
        # Longer than its leases: other processes take its jobs over, and its own results come late.
        await asyncio.sleep(service.lease_seconds + fault.seconds)
        service.signal(signal.SIGCONT)

    async def _kill_children(self, fault: Fault) -> None:
        self.world.kill_children(fault.process)

    async def _kill_redis(self, fault: Fault) -> None:
        redis = self._shared_redis()
        await asyncio.to_thread(redis.kill, loses_data=fault.kind == "lose redis")
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(redis.start)

    async def _stop_redis(self, fault: Fault) -> None:
        await _stop_for(self._shared_redis().pid, fault.seconds)

    async def _command_redis(self, fault: Fault) -> None:
        commands: dict[str, tuple[str | int, ...]] = {
            "pause redis": ("CLIENT", "PAUSE", round(fault.seconds * 1000), "ALL"),
            "wipe redis": ("FLUSHALL",),
            "drop redis connections": ("CLIENT", "KILL", "TYPE", "normal" if fault.process else "pubsub"),
        }
        try:
            await asyncio.to_thread(self._shared_redis().client().execute_command, *commands[fault.kind])
        except RedisError:
            pass  # the connection of this client was cut with the others
        if fault.kind == "pause redis":
            await asyncio.sleep(fault.seconds)

    def _shared_redis(self) -> RedisServer:
        assert self.world.redis is not None
        return self.world.redis

    async def _lose_while_paused(self, fault: Fault) -> None:
        """Pause the queue, remove all data from Redis, and resume the queue once the service had time to notice."""
        paused_at = await self.operator.pause()
        if self.world.is_embedded:
            await self._kill_own_redis(fault)
        else:
            await asyncio.sleep(fault.seconds / 2)
            await asyncio.to_thread(self._shared_redis().client().flushall)
        await asyncio.sleep(fault.seconds)
        await self.operator.resume(paused_at)

    async def _kill_own_redis(self, fault: Fault) -> None:
        service = self.world.services[fault.process]
        starts = len(service.find("embedded_redis_started"))
        pid = await asyncio.to_thread(self.world.own_redis_of, fault.process)
        if fault.kind.startswith("damage"):
            self.damages[fault.at](self.world.first.folder / "redis")
        signal_to(pid, signal.SIGKILL)
        await asyncio.to_thread(service.wait_log, "embedded_redis_started", starts + 1)

    async def _stop_own_redis(self, fault: Fault) -> None:
        """Stop it for a while or, in half of the cases, until the service replaces it."""
        service = self.world.services[fault.process]
        starts = len(service.find("embedded_redis_started"))
        pid = await asyncio.to_thread(self.world.own_redis_of, fault.process)
        signal_to(pid, signal.SIGSTOP)
        if fault.seconds > 2.25:
            await asyncio.to_thread(service.wait_log, "embedded_redis_started", starts + 1)
            return
        await asyncio.sleep(fault.seconds)
        signal_to(pid, signal.SIGCONT)

    async def _disturb_receiver(self, fault: Fault) -> None:
        receiver = self.world.receiver
        if fault.kind == "receiver refuses":
            receiver.script(*[Reply(410)] * 3)  # each makes a dead letter
            return
        if fault.kind == "receiver fails":
            receiver.script(*[Reply(503)] * 1000)
        else:
            receiver.pause()
        await asyncio.sleep(fault.seconds)
        receiver.clear_replies()
        receiver.resume()

    async def _use_dead_letter(self, fault: Fault) -> None:
        # A few at a time.
        for _ in range(3):
            await (self.operator.remove_one if fault.kind.startswith("remove") else self.operator.rerun_one)()

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

    async def _disturb_ai(self, fault: Fault) -> None:
        replies: dict[str, dict[str, object]] = {
            "ai fails": {"status": 503, "times": 20},
            "ai asks to wait": {"status": 429, "headers": {"Retry-After": "1"}, "times": 3},
            "ai sends garbage": {"body": "<html>", "times": 2},
            "ai cuts": {"cut": True, "times": 10},
        }
        if fault.kind in replies:
            await asyncio.to_thread(self.world.ai.configure, replies=[replies[fault.kind]])
            await asyncio.sleep(fault.seconds)
            # An open breaker asks so seldom that the rest of the replies would last for minutes.
            await asyncio.to_thread(self.world.ai.configure, clear_replies=True)
            return
        await asyncio.to_thread(self.world.ai.configure, paused=True)
        await asyncio.sleep(fault.seconds * 2)
        await asyncio.to_thread(self.world.ai.configure, paused=False)

    async def _kill_ai(self, fault: Fault) -> None:
        await self.world.count_provider_calls()
        await asyncio.to_thread(self.world.ai.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.world.ai.start)

    async def _disturb_link(self, fault: Fault) -> None:
        link = self.world.links[f"{fault.process}-{fault.link}"]
        disturb = {
            "cut link": link.cut,
            "stall link": link.stall,
            "slow link": lambda: link.slow(300),
            "reset link": link.reset,
        }[fault.kind]
        # Toxiproxy 2.12 never sends the data that it delayed for a server that was killed meanwhile.
        async with self._locks[fault.link] if fault.kind in DELAYS else nullcontext():
            await asyncio.to_thread(disturb)
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(link.heal)

    async def _late_commit(self, fault: Fault) -> None:
        """Delay a commit on its way to the store until other processes have done the jobs."""
        service, ai_delay_seconds = self.world.services[fault.process], self.world.ai_delay_ms / 1000
        # Long enough for running jobs to reach their commit, and then for other processes to take them over.
        to_commit, to_be_done = ai_delay_seconds + 0.1, service.lease_seconds + 2
        await asyncio.to_thread(service.wait_log, "job_claimed", len(service.find("job_claimed")) + 1)
        await asyncio.sleep(ai_delay_seconds / 4)
        if self.world.mongo is None:
            await self._stop_at_the_lock(service, to_commit, to_be_done)
            return
        store, redis = (self.world.links[f"{fault.process}-{name}"] for name in ("store", "redis"))
        links = self._locks[f"{fault.process}-store"], self._locks[f"{fault.process}-redis"]
        async with links[0], links[1], self._locks["store"]:
            await asyncio.to_thread(store.stall)
            await asyncio.sleep(to_commit)
            await asyncio.to_thread(redis.cut)
            await asyncio.sleep(to_be_done)
            await asyncio.to_thread(store.heal)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(redis.heal)

    async def _stop_at_the_lock(self, service: ChaosService, to_commit: float, to_be_done: float) -> None:
        """Stop the process while its commits wait for the locked file; they are written when it continues."""
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
