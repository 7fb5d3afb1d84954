"""The rights that the service needs in Redis: tries each command that it uses, on a test key.

tests/unit/test_redis_rights.py compares the list with the commands of the Lua scripts, queue, rooms and link.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from pipeline.link.master import Master

KEY, CHANNEL = "KEY", "CHANNEL"
# In an order in which each command meets a key of its type, or none. No key stays longer than SECONDS.
MILLISECONDS, SECONDS = "5000", "5"
STRINGS: Sequence[tuple[str, ...]] = (
    ("SET", KEY, "1", "PX", MILLISECONDS),
    *(("GET", KEY), ("EXISTS", KEY), ("MGET", KEY), ("MSET", KEY, "1"), ("INCR", KEY), ("DECRBY", KEY, "1")),
    *(("PERSIST", KEY), ("EXPIRE", KEY, SECONDS), ("PEXPIRE", KEY, MILLISECONDS), ("DEL", KEY)),
)
LISTS: Sequence[tuple[str, ...]] = (
    *(("LPUSH", KEY, "a", "b"), ("RPUSH", KEY, "c"), ("EXPIRE", KEY, SECONDS), ("LINDEX", KEY, "0"), ("LLEN", KEY)),
    *(("LPOS", KEY, "c"), ("LRANGE", KEY, "0", "0"), ("LMOVE", KEY, KEY, "LEFT", "RIGHT"), ("LREM", KEY, "1", "x")),
    *(("LPOP", KEY), ("RPOP", KEY), ("BLPOP", KEY, "0.01"), ("DEL", KEY)),
)
HASHES: Sequence[tuple[str, ...]] = (
    *(("HSET", KEY, "a", "1"), ("EXPIRE", KEY, SECONDS), ("HSETNX", KEY, "a", "1"), ("HINCRBYFLOAT", KEY, "a", "1")),
    *(("HMGET", KEY, "a"), ("HGETALL", KEY), ("HDEL", KEY, "a"), ("DEL", KEY)),
)
SORTED_SETS: Sequence[tuple[str, ...]] = (
    *(("ZADD", KEY, "1", "a"), ("EXPIRE", KEY, SECONDS), ("ZCARD", KEY), ("ZCOUNT", KEY, "0", "1")),
    *(("ZLEXCOUNT", KEY, "-", "+"), ("ZMSCORE", KEY, "a"), ("ZSCORE", KEY, "a"), ("ZRANGE", KEY, "0", "0")),
    *(("ZRANGEBYLEX", KEY, "-", "+"), ("ZREVRANK", KEY, "a"), ("ZREM", KEY, "a"), ("DEL", KEY)),
)
SCRIPTS: Sequence[tuple[str, ...]] = (
    ("EVALSHA", "0" * 40, "1", KEY),
    ("EVAL", "return 1", "1", KEY),
    ("SCRIPT|LOAD", "return 1"),
)
REST: Sequence[tuple[str, ...]] = (("PING",), ("TIME",), ("PUBLISH", CHANNEL, ""))
TRIED = (*REST, *STRINGS, *LISTS, *HASHES, *SORTED_SETS, *SCRIPTS)
# Not tried here: the check of the rooms uses them. Redis 7 and later use the commands with an S.
LISTENING = ("SUBSCRIBE", "UNSUBSCRIBE", "SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")
# Without them the service works, but reports less, or finds a new master later.
WISHED = ("INFO", "CLUSTER|SLOTS", "ROLE")
# The text of a refusal by Redis.
REFUSED_COMMAND = re.compile(r"run the '([\w|-]+)' command")


def acl_rules(prefix: str) -> list[str]:
    """Return the ACL rules that allow what the service needs with this QUEUE_PREFIX, and nothing else."""
    commands = dict.fromkeys(each[0] for each in TRIED)
    return [f"~{prefix}:*", f"&{prefix}:*", "-@all", *(f"+{each.lower()}" for each in (*commands, *LISTENING, *WISHED))]


async def missing_rights(master: Master, prefix: str) -> list[str]:
    """Return the ACL rules that the user lacks; ReadOnlyError for a replica, and all errors of the link."""
    # In a Redis Cluster on the same node as the keys of the queue.
    stands_for = {KEY: f"{prefix}:{{ai-processing}}:check", CHANNEL: f"{prefix}:probe"}
    missing: dict[str, None] = {}
    for command in TRIED:
        words = [stands_for.get(word, word) for word in (*command[0].split("|"), *command[1:])]
        try:
            await master.call(lambda link: link.ask(*words))
        except NoPermissionError as error:
            missing[_rule(str(error), command[0], prefix)] = None
        except ReadOnlyError:
            raise
        except ResponseError:
            continue  # not a missing right: NOSCRIPT, or a command that an older Redis does not know
    return list(missing)


def _rule(refusal: str, command: str, prefix: str) -> str:
    """Return the missing rule, read from the refusal."""
    if match := REFUSED_COMMAND.search(refusal):
        return f"+{match[1]}"
    if "channel" in refusal:
        return f"&{prefix}:*"
    return f"~{prefix}:*" if "key" in refusal else f"+{command.lower()}"
