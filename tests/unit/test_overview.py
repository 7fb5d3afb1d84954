"""What is made of the fields of INFO, and what counts as a change of the overview."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.usecases.overview import describe_redis

WELL = {
    "redis_version": "7.2.4",
    "role": "master",
    "used_memory": "1000",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
}


@pytest.mark.parametrize(
    ("more", "shown", "remark"),
    [
        ({}, {"version": "Redis 7.2.4", "role": "master", "persistence": "aof", "error": None}, "as it should be"),
        ({}, {"usedBytes": 1000, "maxBytes": None, "isEvictionSafe": True}, "no limit of its own"),
        ({"server_name": "valkey", "valkey_version": "8.1.4"}, {"version": "Valkey 8.1.4"}, "its own version"),
        ({"role": "slave"}, {"role": "replica"}, "a name of today"),
        ({"maxmemory": "9", "maxmemory_policy": "volatile-lru"}, {"maxBytes": 9, "isEvictionSafe": False}, "evicts"),
        ({"maxmemory_policy": "allkeys-lfu"}, {"evictionPolicy": "allkeys-lfu", "isEvictionSafe": False}, "evicts"),
        ({"aof_enabled": "0"}, {"persistence": "snapshots"}, "at most these"),
        ({"aof_last_write_status": "err"}, {"error": "Redis cannot write its append-only file"}, "disk full"),
        ({"rdb_last_bgsave_status": "err"}, {"error": "Redis cannot write its snapshot"}, "disk full"),
        ({"used_memory": "many", "role": "sentinel"}, {"usedBytes": None, "role": None}, "not understood"),
    ],
)
def test_redis_is_described_by_its_info(more: dict[str, str], shown: dict[str, Any], remark: str) -> None:
    """What operators have to know of the server, in words of ours."""
    assert shown.items() <= describe_redis(WELL | more, is_embedded=False, error=None).items(), remark


def test_redis_that_is_away_is_described_by_nothing_but_the_reason() -> None:
    """Nothing of it is known then, its policy least of all."""
    shown = describe_redis({}, is_embedded=True, error="The queue cannot be reached")
    known = {name: value for name, value in shown.items() if value is not None}
    assert known == {"isUp": False, "isEmbedded": True, "error": "The queue cannot be reached"}
