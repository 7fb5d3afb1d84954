"""Every kind of Redis that REDIS_URL may name loses a server while photos are processed by two real processes.

No event is lost, the jobs continue, and the processes exchange events again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.failover import Pair
from tests.redis_topologies import TOPOLOGIES


@pytest.mark.fault("R2")
@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.gen_test(timeout=300)
async def test_no_event_is_lost_when_a_server_is_lost(name: str, tmp_path: Path) -> None:
    """Open sockets on one process get the event of every photo that another process accepted."""
    with TOPOLOGIES[name]() as topology, Pair(tmp_path, topology) as pair:
        for fault in topology.faults[:2]:
            outcome = await pair.run_fault(fault, uploads=40, sockets=5)
            assert len(outcome.accepted) == 40 and not outcome.lost, fault
            assert outcome.live_seconds < float("inf"), f"no event of a later photo was received after {fault}"
