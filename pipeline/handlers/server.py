"""The HTTP server, which keeps some of the process's files back from the network.

Every connection is an open file. A process that has none left cannot accept, and Tornado would try again without a
pause; it could not reach its store or Redis either. So what comes too near to the limit is closed at once.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import structlog
import tornado.httpserver
from tornado.iostream import IOStream

from pipeline.metrics import Metrics
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# For Redis, the stores, images on their way and what plugins open.
FILES_KEPT_BACK = 128
# What is asked for where the hard limit is "unlimited": macOS refuses more.
FILES_WANTED = 10_240


class HttpServer(tornado.httpserver.HTTPServer):
    """Tornado's server with an end to how many connections it takes."""

    # Not __init__: Tornado's servers take their options there.
    def initialize(self, *arguments: Any, metrics: Metrics, **options: Any) -> None:  # type: ignore[override]
        super().initialize(*arguments, **options)
        # chunk_size is for bodies; what else comes in is read as Tornado does it.
        self.read_chunk_size = None
        self._metrics = metrics
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._last_file = sys.maxsize if soft == resource.RLIM_INFINITY else soft - FILES_KEPT_BACK
        self._is_full = False

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        # The system hands out the lowest number that is free, so this one tells how many files there are.
        if stream.socket.fileno() > self._last_file:
            self._metrics.connections_refused.inc()
            if not self._is_full:
                log.warning("connections_refused", reason="too many open files", limit=self._last_file)
            self._is_full = True
            stream.close()
            return
        self._is_full = False
        super().handle_stream(stream, address)


def raise_file_limit() -> None:
    """Let the process open as many files as the system allows it: the usual 1,024 are soon sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("file_limit_not_raised", limit=soft, error=cause_of(error))
