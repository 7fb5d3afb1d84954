"""The servers of the comparison: how each is installed and started, and the codec of its clients.

They need npm, Go and PyPI; a peer whose tools are missing is left out with a reason.
"""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks import peers
from benchmarks.rooms import load
from tests.factories import SECRET

HERE = Path(__file__).parent
NPM = "socket.io@4.8 jsonwebtoken @socket.io/redis-adapter redis bufferutil utf-8-validate"
PYPI = "python-socketio uvicorn[standard] pyjwt redis[hiredis]"
CENTRIFUGO = "github.com/centrifugal/centrifugo/v6@v6.9.1"
API_KEY = "key"


@dataclass
class Running:
    """A server under test.

    port: of the sockets.
    emit_port: of GET /emit.
    pids: the processes whose CPU counts; the one with the sockets comes first.
    """

    port: int
    emit_port: int
    pids: list[int]


@dataclass
class Peer:
    """One product.

    install: installs it into a folder and returns its version.
    start: starts one process or, with a Redis, two: the first has the sockets, the second emits.
    """

    name: str
    codec: load.Codec
    install: Callable[[Path], str]
    start: Callable[[Path, str | None, ExitStack], Running]
    has_redis: bool = True
    folder: Path = field(default_factory=Path)


def spawn(stack: ExitStack, command: list[str], **environment: str) -> tuple[int, int]:
    """Start a program that prints its port; return its pid and the port. The stack ends it."""
    pid, line = peers.spawn(stack, command, **environment)
    return pid, int(line)


def start_pair(stack: ExitStack, command: list[str], redis_url: str | None, **environment: str) -> Running:
    """Start one process, or two that share a Redis."""
    if not redis_url:
        pid, port = spawn(stack, command, **environment)
        return Running(port, port, [pid])
    pid, port = spawn(stack, [*command, redis_url], **environment)
    emit_pid, emit_port = spawn(stack, [*command, redis_url], **environment)
    return Running(port, emit_port, [pid, emit_pid])


def install_nothing(_folder: Path) -> str:
    return f"Tornado {version('tornado')}, redis-py {version('redis')}, Python {platform.python_version()}"


def install_socketio(folder: Path) -> str:
    return peers.from_npm(folder, NPM, ("socket.io", "ws", "@socket.io/redis-adapter"))


def start_socketio(folder: Path, redis_url: str | None, stack: ExitStack) -> Running:
    command = ["node", str(HERE / "socketio_server.js"), SECRET]
    return start_pair(stack, command, redis_url, NODE_PATH=str(folder / "node_modules"))


def install_python_socketio(folder: Path) -> str:
    return peers.from_pypi(folder, PYPI, ("python-socketio", "python-engineio", "uvicorn", "uvloop"))


def start_python_socketio(folder: Path, redis_url: str | None, stack: ExitStack) -> Running:
    command = [str(folder / "bin" / "python"), "-m", "benchmarks.rooms.socketio_server", SECRET]
    return start_pair(stack, command, redis_url)


def install_centrifugo(folder: Path) -> str:
    return peers.from_go(folder, CENTRIFUGO)


def start_centrifugo(folder: Path, redis_url: str | None, stack: ExitStack) -> Running:
    nodes = [start_centrifugo_node(folder, redis_url, stack) for _ in range(2 if redis_url else 1)]
    emitter = [sys.executable, "-m", "benchmarks.rooms.centrifugo_emitter", str(nodes[-1][1]), API_KEY]
    _, emit_port = spawn(stack, emitter)
    return Running(nodes[0][1], emit_port, [pid for pid, _ in nodes])


def start_centrifugo_node(folder: Path, redis_url: str | None, stack: ExitStack) -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    config = folder / f"config-{port}.json"
    stack.callback(config.unlink)
    engine = {"type": "redis", "redis": {"address": redis_url}} if redis_url else {"type": "memory"}
    settings = {
        "http_server": {"address": "127.0.0.1", "port": port},
        "client": {"token": {"hmac_secret_key": SECRET}},
        "channel": {"namespaces": [{"name": "user"}]},
        "http_api": {"key": API_KEY},
        "engine": engine,
        "log": {"level": "error"},
        "usage_stats": {"disabled": True},
    }
    config.write_text(json.dumps(settings))
    process = subprocess.Popen([folder / "centrifugo", "--config", config], cwd=folder)
    stack.callback(process.wait)
    stack.callback(process.kill)
    load.wait_for_port(port)
    return process.pid, port


def start_ours(_folder: Path, redis_url: str | None, stack: ExitStack) -> Running:
    return start_pair(stack, [sys.executable, "-m", "benchmarks.rooms.server"], redis_url)


def start_blaster(_folder: Path, _redis_url: str | None, stack: ExitStack) -> Running:
    return start_pair(stack, [sys.executable, "-m", "benchmarks.rooms.blaster"], None)


def all_peers() -> list[Peer]:
    """Return all servers, ours first; the last one shows the limit of the load client."""
    return [
        Peer("ours", load.OURS, install_nothing, start_ours),
        Peer("ours, event stream", load.OURS_STREAM, install_nothing, start_ours),
        Peer("Socket.IO", load.SOCKET_IO, install_socketio, start_socketio),
        Peer("python-socketio", load.SOCKET_IO, install_python_socketio, start_python_socketio),
        Peer("Centrifugo", load.CENTRIFUGO, install_centrifugo, start_centrifugo),
        Peer("blaster", load.OURS, install_nothing, start_blaster, has_redis=False),
    ]
