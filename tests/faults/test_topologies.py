"""Every kind of Redis that REDIS_URL may name loses a server while photos are under way: two real processes, no event
lost, the jobs go on, and the processes hear each other again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.failover import Pair
from tests.redis_topologies import TOPOLOGIES


@pytest.mark.fault("R2")
@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.gen_test(timeout=300)
async def test_no_event_is_lost_when_a_server_goes(name: str, tmp_path: Path) -> None:
    """Sockets that stay open on one process hear of every photo that another took before, while and after."""
    with TOPOLOGIES[name]() as topology, Pair(tmp_path, topology) as pair:
        for fault in topology.faults[:2]:
            outcome = await pair.run_fault(fault, uploads=40, sockets=5)
            assert len(outcome.accepted) == 40 and not outcome.lost, fault
            assert outcome.live_seconds < float("inf"), f"no later photo was heard of after {fault}"
