"""The description of Redis in the overview, from the fields of INFO."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.usecases.overview import describe_redis

HEALTHY = {
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
        ({}, {"version": "Redis 7.2.4", "role": "master", "persistence": "aof", "error": None}, "a healthy server"),
        ({}, {"usedBytes": 1000, "maxBytes": None, "isEvictionSafe": True}, "no memory limit"),
        ({"server_name": "valkey", "valkey_version": "8.1.4"}, {"version": "Valkey 8.1.4"}, "the version of Valkey"),
        ({"role": "slave"}, {"role": "replica"}, "the current name of the role"),
        ({"maxmemory": "9", "maxmemory_policy": "volatile-lru"}, {"maxBytes": 9, "isEvictionSafe": False}, "evicts"),
        ({"maxmemory_policy": "allkeys-lfu"}, {"evictionPolicy": "allkeys-lfu", "isEvictionSafe": False}, "evicts"),
        ({"aof_enabled": "0"}, {"persistence": "snapshots"}, "snapshots at most"),
        ({"aof_last_write_status": "err"}, {"error": "Redis cannot write its append-only file"}, "disk full"),
        ({"rdb_last_bgsave_status": "err"}, {"error": "Redis cannot write its snapshot"}, "disk full"),
        ({"used_memory": "many", "role": "sentinel"}, {"usedBytes": None, "role": None}, "unknown values"),
    ],
)
def test_redis_is_described_by_its_info(more: dict[str, str], shown: dict[str, Any], remark: str) -> None:
    """The description has what operators need to know about the server, in our words."""
    assert shown.items() <= describe_redis(HEALTHY | more, is_embedded=False, error=None).items(), remark


def test_unavailable_redis_is_described_only_by_the_reason() -> None:
    """Without a reply of Redis no other field is known, in particular not its eviction policy."""
    shown = describe_redis({}, is_embedded=True, error="The queue cannot be reached")
    known = {name: value for name, value in shown.items() if value is not None}
    assert known == {"isUp": False, "isEmbedded": True, "error": "The queue cannot be reached"}
