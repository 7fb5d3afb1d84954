"""The sandbox that plugins get: child processes for work that can hang, crash or use too much memory. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pipeline.sandbox import Picture


class SandboxPool(Protocol):
    """Child processes for work that can hang, crash or use too much memory: decoding, OpenCV, models.

    A child is ended when a call reaches a limit, and the next call gets a new child: a call hurts only itself. A child
    ends with the service. It sees the arguments of its calls, not the environment of the service, and writes no files.
    Code that you do not trust can still escape from it.
    """

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        seconds: float,
        cpu_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> Any:
        """Return function(*args), called in a child that does only this call; calls wait in order for a free child.

        function: a function at the top level of a module. A child imports that module by its name, so import inside
        the function whatever only the child needs.
        args, result: None, booleans, numbers, texts, bytes, lists and dicts of these; a tuple arrives as a list. The
        result has at most 64 MB, and 1 MB without its bytes.
        seconds: how long the call may run.
        cpu_seconds: how much processor time it may use, in whole seconds, all threads together; default: what all
        cores have in `seconds`.
        wait_seconds: how long it may wait for a free child; default: for ever.

        Cancelling a call ends its child.

        PermanentJobError and RetryableJobError: raised by the function; only their message is passed on, because a
        child that a photo has taken over must not decide how long jobs wait.
        RetryableJobError whose cause has the type and the text: any other exception of the function.
        SandboxLimit: a limit was reached or the child crashed; this uses up an attempt.
        RetryableJobError(spends_attempt=False): no child became free in time, or none can be started.
        """

    async def close(self) -> None:
        """End the children at once. The service does so too when it ends."""


class Sandbox(Protocol):
    """Runs a plugin's work in child processes that can be ended; the second argument of the `register_` hooks. No
    process starts before the first call.
    """

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        seconds: float,
        cpu_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> Any:
        """Return function(*args), called in the light child, which all plugins share: for short work only. See
        SandboxPool.run; one call may use DECODE_MEMORY_MB and 256 MB more.
        """

    def pool(
        self, name: str, *, setup: Callable[[], Any] | None = None, processes: int = 1, memory_mb: int = 1024
    ) -> SandboxPool:
        """Return children of the plugin's own, for long work and for work that needs a long time to load.

        name: for the log.
        setup: each child calls it once before its first call, for example to load models into its module; a function
        as in `run`, without arguments.
        processes: how many calls run at once.
        memory_mb: how much memory one call may use beside the memory that its child had before.
        """

    async def reduce(
        self, content: bytes, long_side: int = 1600, *, seconds: float = 30, wait_seconds: float | None = None
    ) -> Picture:
        """Return the photo as pixels: upright, RGB on white, at most long_side (up to 1600) wide and high, the first
        frame of several. Decodes every format that an upload may have, in the light child.

        seconds, wait_seconds: see SandboxPool.run.

        PermanentJobError: the bytes are no readable picture, or it has more than 200 megapixels or needs more than
        DECODE_MEMORY_MB.
        SandboxLimit: decoding takes too long.
        RetryableJobError(spends_attempt=False): no child was free in time.
        """

    async def reduce_to_jpeg(
        self,
        content: bytes,
        long_side: int = 1600,
        *,
        quality: int = 85,
        seconds: float = 30,
        wait_seconds: float | None = None,
    ) -> bytes:
        """Return the photo as a JPEG, reduced as by `reduce`, without the metadata of its file, such as the place.

        quality: 1 to 95.
        """

    async def close(self) -> None:
        """End all children. The service calls this; a plugin does not."""
