"""The connections to Redis: one connection is shared by all calls, another one receives what is published.

The servers are real: single ones, Sentinels, and a Redis Cluster of three masters. Slots move and masters stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable
from pipeline.queue.job import Finish, NewJob, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.link.connection import CALL_SECONDS, TRUSTED_SECONDS
from pipeline.link.master import Master
from pipeline.link.nodes import Nodes
from tests.certificates import Authority
from tests.forwarder import Forwarder
from tests.redis_server import RedisCluster, RedisServer
from tests.redis_topologies import MASTER_NAME, start_sentinel
from tests.toxiproxy import free_port

WAITING = "pipeline:{ai-processing}:waiting"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def owner(cluster: RedisCluster) -> RedisServer:
    """The master that has the queue, without any data."""
    owner = cluster.owner(WAITING)
    owner.client().flushall()
    return owner


@pytest.fixture
def queues(io_loop: IOLoop, cluster: RedisCluster) -> Iterator[list[JobQueue]]:
    """One queue for each of the cluster's addresses."""
    queues = [JobQueue(server.url, block_seconds=1) for server in cluster.servers]
    yield queues
    for queue in queues:
        io_loop.run_sync(queue.close)


def new_jobs(count: int) -> list[NewJob]:
    return [NewJob(f"ai-processing:{number:024x}", {"assetId": f"{number:024x}"}) for number in range(count)]


@pytest.mark.gen_test(timeout=60)
async def test_any_address_of_the_cluster_leads_to_the_queue(owner: RedisServer, queues: list[JobQueue]) -> None:
    """Single, pipelined and blocking calls work: a job of one address is claimed and finished over another."""
    for queue in queues:
        await queue.ping()
    jobs = new_jobs(3)
    assert await queues[0].restore(jobs[:2]) == 2
    assert await queues[1].enqueue(jobs[2].id, jobs[2].data)
    await queues[2].wait_for_work()
    claimed = (await queues[2].step("w:1", [], 5)).claimed
    assert [job.id for job in claimed] == [job.id for job in jobs]
    await queues[0].step("w:2", [Finish(job, Outcome.COMPLETED) for job in claimed], 0)
    assert [(await queue.stats()).completed for queue in queues] == [3, 3, 3]
    assert await queues[1].fields(jobs[0].id) == {"state": "completed"}
    assert await queues[1].backlog() == 0
    assert owner.client().zcard("pipeline:{ai-processing}:completed") == 3


@pytest.mark.gen_test(timeout=60)
async def test_slot_that_moves_is_followed(cluster: RedisCluster, owner: RedisServer, queues: list[JobQueue]) -> None:
    """A queue whose slot moves to another master works there; no call fails and no job is lost."""
    jobs = new_jobs(200)
    for queue in queues:
        await queue.stats()
    await queues[0].restore(jobs[:100])
    target = cluster.servers[cluster.servers.index(owner) - 1]
    cluster.move_slot(WAITING, owner, target)
    claimed = []
    for number, queue in enumerate(queues * 10):
        claimed += (await queue.step(f"w:{number}", [], 5)).claimed
    assert [job.id for job in claimed] == [job.id for job in jobs[:100]]
    assert await queues[1].restore(jobs) == 100
    assert (await queues[2].stats()).waiting == 100
    assert cluster.owner(WAITING) is target and target.client().llen(WAITING) == 100


@pytest.mark.gen_test(timeout=60)
async def test_lost_servers_are_no_longer_asked(cluster: RedisCluster, owner: RedisServer) -> None:
    """The server of the URL is dead and the queue's master restarts: calls find that master over the third server."""
    other = next(server for server in cluster.servers if server is not owner)
    queue = JobQueue(other.url)
    await queue.restore(new_jobs(1))
    other.kill()
    owner.kill()
    owner.start()
    failed = 0
    while True:
        try:
            assert (await queue.stats()).waiting == 1
            break
        except DependencyUnavailable:
            failed += 1
    assert failed > 0
    await queue.close()


@pytest.mark.gen_test(timeout=60)
async def test_master_that_became_a_replica_is_left(io_loop: IOLoop) -> None:
    """Connections to it are closed, so that the next call connects to the server that has its address then."""
    with RedisServer() as server:
        queue, redis = JobQueue(server.url), server.client()
        await queue.restore(new_jobs(1))
        await queue.step("w:1", [], 0)
        before = {client["id"] for client in redis.client_list() if client["cmd"].startswith("eval")}
        redis.replicaof("127.0.0.1", server.port + 1)
        for call in (queue.step("w:2", [], 5), queue.enqueue(new_jobs(2)[1].id, {})):
            with pytest.raises(DependencyUnavailable):
                await call
        redis.replicaof("NO", "ONE")
        assert [job.id for job in (await queue.step("w:3", [], 5)).claimed] == [new_jobs(1)[0].id]
        after = {client["id"] for client in redis.client_list() if client["cmd"].startswith("eval")}
        assert before and not before & after
        await queue.close()


@pytest.mark.gen_test(timeout=30)
async def test_cancelled_call_does_not_shift_the_replies_of_others() -> None:
    """Concurrent calls share a connection; the reply to a cancelled call is dropped."""
    with RedisServer() as redis:
        server = Master(redis.url)
        await server.call(lambda link: link.ask("PING"))
        calls = [asyncio.create_task(server.call(methodcaller("ask", "ECHO", text))) for text in "abc"]
        await asyncio.sleep(0)
        calls[1].cancel()
        assert [await calls[0], await calls[2]] == ["a", "c"]
        assert calls[1].cancelled()
        assert await server.call(lambda link: link.ask("ECHO", "d")) == "d"
        server.close()


@pytest.mark.gen_test(timeout=30)
async def test_lost_connection_leaves_no_caller_waiting() -> None:
    """Each call gets an error at once, whether Redis or the process cut the connection; the next call connects anew."""
    with RedisServer() as redis:
        server = Master(redis.url)
        for cut in (lambda: redis.client().client_kill_filter(_type="normal", skipme=True), server.close):
            await server.call(lambda link: link.ask("PING"))
            calls = [asyncio.ensure_future(server.call(lambda link: link.ask("BLPOP", "none", 0))) for _ in range(3)]
            while not redis.client().info("clients")["blocked_clients"]:
                await asyncio.sleep(0.01)
            cut()
            for error in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 1):
                assert isinstance(error, RedisConnectionError)
        assert await server.call(lambda link: link.ask("PING")) == "PONG"
        server.close()


@pytest.mark.gen_test(timeout=30)
async def test_listening_connection_hands_over_what_is_published() -> None:
    """Messages are bytes. An error of the listener ends the connection, and `check` raises that error."""
    with RedisServer() as redis:
        received: asyncio.Queue[list[Any]] = asyncio.Queue()
        link = await Nodes(redis.url).open(None)
        lost = asyncio.Event()
        link.on_lost = lost.set
        link.listen(received.put_nowait)
        link.send([("SUBSCRIBE", "news"), ("PING",)])
        assert await received.get() == [b"subscribe", b"news", 1]
        assert await received.get() == [b"pong", b""]
        redis.client().publish("news", b"\xff")
        assert await received.get() == [b"message", b"news", b"\xff"]
        link.check(1)
        link.listen(methodcaller("missing"))
        redis.client().publish("news", "more")
        await asyncio.wait_for(lost.wait(), 1)
        with pytest.raises(AttributeError):
            link.check(1)


@pytest.mark.gen_test(timeout=30)
@pytest.mark.fault("O16")
async def test_connections_share_a_tls_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a context blocks the event loop for up to 300 ms. Calls, messages and closing work over TLS."""
    authority = Authority(tmp_path, "ours")
    made: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def count(*args: Any, **options: Any) -> ssl.SSLContext:
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", count)
    with RedisServer() as redis:
        async with Forwarder(redis.port, tls=authority.server_context("127.0.0.1")) as address:
            url = f"{address.url}?ssl_ca_certs={authority.ca_file}"
            nodes = Nodes(url)
            # Queues, rooms and tickets each have their own Nodes for the same servers.
            links = [await nodes.open(None), await nodes.open(None), await Nodes(url).open(None)]
            assert await links[0].ask("ECHO", "x" * 100_000) == "x" * 100_000
            received: asyncio.Queue[list[Any]] = asyncio.Queue()
            links[1].listen(received.put_nowait)
            links[1].send([("SUBSCRIBE", "news")])
            assert await received.get() == [b"subscribe", b"news", 1]
            redis.client().client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(RedisConnectionError):
                await links[0].ask("BLPOP", "none", 0)
            for link in links:
                link.close()
    assert len(made) == 1


@pytest.mark.fault("R5")
@pytest.mark.gen_test(timeout=30)
async def test_idle_connection_cut_silently_is_replaced() -> None:
    """The first call after the cut gets its reply over a new connection, and does not fail."""
    with RedisServer() as redis:
        async with Forwarder(redis.port) as address:
            server = Master(address.url)
            await server.call(lambda link: link.ask("PING"))
            await asyncio.sleep(TRUSTED_SECONDS)  # a connection is idle after this time
            address.silence()
            async with asyncio.timeout(CALL_SECONDS):
                assert await server.call(lambda link: link.ask("ECHO", "a")) == "a"
            server.close()


@pytest.mark.gen_test(timeout=60)
async def test_sentinels_have_a_login_of_their_own(tmp_path: Path) -> None:
    """A wrong login is an error. A dead Sentinel and a Sentinel that does not know the master are skipped."""
    dead, port = free_port(), free_port()
    with ExitStack() as stack:
        redis, other = stack.enter_context(RedisServer()), stack.enter_context(RedisServer())
        start_sentinel(stack, tmp_path, port, redis.port, 1000, "secret")
        hosts = f"127.0.0.1:{dead},127.0.0.1:{other.port},127.0.0.1:{port}"
        other.client().config_set("requirepass", "secret")
        nodes = Nodes(f"redis+sentinel://{hosts}/{MASTER_NAME}/1?sentinel_password=secret")
        for _ in range(2):
            link, address, ranges = await nodes.find()
            assert (address, ranges, nodes.database) == (("127.0.0.1", redis.port), [], 1)
            assert "db=1" in await link.ask("CLIENT", "INFO")
            link.close()
        with pytest.raises(RedisError):
            await Nodes(f"redis+sentinel://127.0.0.1:{port}/{MASTER_NAME}?sentinel_password=wrong").find()
        redis.client().config_set("requirepass", "secret")
        link, address, _ = await Nodes(f"redis+sentinel://:secret@127.0.0.1:{port}/{MASTER_NAME}").find()
        assert address == ("127.0.0.1", redis.port)
        link.close()


@pytest.mark.gen_test(timeout=30)
async def test_connection_to_a_hanging_server_is_closed() -> None:
    """Every call ends in time, and once the server answers a new connection serves the next call."""
    with RedisServer() as redis:
        server = Master(redis.url, call_seconds=0.3)
        await server.call(lambda link: link.ask("PING"))
        os.kill(redis.pid, signal.SIGSTOP)
        calls = [server.call(lambda link: link.ask("PING")) for _ in range(3)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, (TimeoutError, RedisConnectionError))
        os.kill(redis.pid, signal.SIGCONT)
        assert await server.call(lambda link: link.ask("PING")) == "PONG"
        server.close()
