"""The faults of a run and their times: the seed alone decides them, before the run begins."""

from __future__ import annotations

import random
from dataclasses import dataclass

# How often each kind is chosen, relative to the others.
WEIGHTS = {
    "kill service": 4,
    "terminate service": 2,
    "terminate group": 2,
    "stop service": 4,
    "kill children": 2,
    "kill redis": 2,
    "stop redis": 2,
    "pause redis": 2,
    "wipe redis": 2,
    "wipe redis while paused": 2,
    "lose redis": 1,
    "drop redis connections": 3,
    "kill own redis": 4,
    "damage own redis": 3,
    "damage own redis while paused": 2,
    "stop own redis": 2,
    "stop store": 2,
    "kill store": 2,
    "lock store": 2,
    "ai fails": 3,
    "ai asks to wait": 2,
    "ai sends garbage": 2,
    "ai hangs": 1,
    "ai cuts": 2,
    "kill ai": 1,
    "receiver fails": 3,
    "receiver hangs": 1,
    "receiver refuses": 2,
    "remove dead letter": 2,
    "rerun dead letter": 2,
    "cut link": 4,
    "stall link": 3,
    "slow link": 3,
    "reset link": 2,
    "late commit": 3,
}
ON_OWN_REDIS = {kind for kind in WEIGHTS if " own redis" in kind}
ON_SHARED_REDIS = {kind for kind in WEIGHTS if " redis" in kind} - ON_OWN_REDIS
ON_A_SERVICE = {"kill service", "terminate service", "terminate group", "stop service", "kill children", "late commit"}
ON_A_LINK = {"cut link", "stall link", "slow link", "reset link"}
ON_THE_OTHER_STORE = {"sqlite": {"stop store", "kill store"}, "mongo": {"lock store"}}
# With a network store it needs a Redis link that can be cut.
NEEDS_A_FLEET = {"late commit"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    at: seconds after the start.
    seconds: how long it lasts.
    process: the number of the service process.
    link: the name of the link of that process.
    """

    at: float
    kind: str
    seconds: float
    process: int
    link: str

    @property
    def target(self) -> str:
        """What the fault happens to. Each target has one fault at a time."""
        if self.kind in ON_A_SERVICE | ON_OWN_REDIS:
            return f"service {self.process}"
        if self.kind in ON_A_LINK:
            return f"{self.process}-{self.link}"
        return self.kind.split()[0 if self.kind.startswith(("ai", "receiver")) else 1]


@dataclass(frozen=True, slots=True)
class Caused:
    """A fault with its beginning and its end (seconds of the clock)."""

    fault: Fault
    began_at: float
    ended_at: float

    def takes_lease_of(self, process: int) -> bool:
        """True when it may keep that process from renewing a lease."""
        if self.fault.kind in ON_A_SERVICE - {"kill children"} | ON_OWN_REDIS:
            return self.fault.process == process
        if self.fault.kind in ON_A_LINK:
            return (self.fault.process, self.fault.link) == (process, "redis")
        return self.fault.kind in ON_SHARED_REDIS


def make_plan(
    seed: int,
    count: int,
    processes: int,
    store: str,
    *,
    gap_seconds: float = 1.2,
    kinds: set[str] | None = None,
    is_embedded: bool = False,
) -> list[Fault]:
    """Return `count` faults in order of time.

    kinds: only these kinds.
    is_embedded: the process has a Redis of its own.
    """
    chance = random.Random(seed)
    impossible = ON_THE_OTHER_STORE[store] | (ON_SHARED_REDIS | NEEDS_A_FLEET if is_embedded else ON_OWN_REDIS)
    usable = {
        kind: weight
        for kind, weight in WEIGHTS.items()
        if (kinds is None or kind in kinds) and kind not in impossible
    }
    links = ["ai"] + ["redis"] * (not is_embedded) + ["store"] * (store == "mongo")
    plan, at = [], 1.0
    for _ in range(count):
        (kind,) = chance.choices(list(usable), list(usable.values()))
        plan.append(Fault(at, kind, chance.uniform(0.5, 4), chance.randrange(processes), chance.choice(links)))
        at += chance.expovariate(1 / gap_seconds)
    return plan
