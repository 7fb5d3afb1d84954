"""Constants of the service that some tests need with another value, and how a process is started with them.

Each name here is where the constant is. In a process of the service: `Service(..., **{MAX_STALLS: "2"})`, which starts
`python -m tests.constants '{"pipeline...": 2}' run.py`; any other command line may be started in the same way. In this
process, where it is read when it is used: `monkeypatch.setattr(PING_SECONDS, 0.1)`; else by an argument.
"""

from __future__ import annotations

import ast
import json
import runpy
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

BODY_SECONDS = "pipeline.handlers.upload.BODY_SECONDS"
BREAKER_FAILURES = "pipeline.hooks.calls.BREAKER_FAILURES"
BREAKER_PROBE_SECONDS = "pipeline.hooks.calls.BREAKER_PROBE_SECONDS"
BYTES_PER_SECOND = "pipeline.handlers.upload.BYTES_PER_SECOND"
LEAST_THREADS = "pipeline.settings.settings.LEAST_THREADS"
MAX_REPLAY_EVENTS = "pipeline.usecases.replay.MAX_REPLAY_EVENTS"
MAX_SOCKETS_WITHOUT_TOKEN = "pipeline.usecases.admission.MAX_SOCKETS_WITHOUT_TOKEN"
MAX_STALLS = "pipeline.queue.attempt.MAX_STALLS"
NOTIFIER_ATTEMPTS = "pipeline.usecases.notifying.ATTEMPTS"
NOTIFIER_BACKOFF_MS = "pipeline.usecases.notifying.BACKOFF_MS"
PING_SECONDS = "pipeline.handlers.socket.PING_SECONDS"
PONG_SECONDS = "pipeline.handlers.socket.PONG_SECONDS"
RECONCILE_AGE_SECONDS = "pipeline.usecases.reconciler.RECONCILE_AGE_SECONDS"
RECONCILE_SECONDS = "pipeline.usecases.reconciler.RECONCILE_SECONDS"
RENEWALS_PER_LEASE = "pipeline.queue.leases.RENEWALS_PER_LEASE"
THREADS_PER_SLOT = "pipeline.settings.settings.THREADS_PER_SLOT"
TOKEN_SECONDS = "pipeline.handlers.socket.TOKEN_SECONDS"


def command_with(constants: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Return what to give Python instead of the command, so that these constants have these values."""
    values = {name: json.loads(value) for name, value in constants.items()}
    return ["-m", "tests.constants", json.dumps(values), *command] if values else [*command]


class ChangedModule(SourceFileLoader):
    """Loads a module in whose source these constants have other values: what is made of them when it is imported, such
    as defaults of arguments, has them too.
    """

    def __init__(self, name: str, path: str, values: Mapping[str, object]) -> None:
        super().__init__(name, path)
        self._values = values

    def get_code(self, fullname: str) -> CodeType:
        tree, left = ast.parse(self.get_data(self.path)), dict(self._values)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name) and target.id in left:
                node.value = ast.copy_location(ast.Constant(left.pop(target.id)), node.value)
        assert not left, f"{fullname} has no constants {left}"
        return compile(tree, self.path, "exec")


class ChangedModules(MetaPathFinder):
    """Finds the modules whose constants are to have other values."""

    def __init__(self, constants: Mapping[str, object]) -> None:
        self._values: dict[str, dict[str, object]] = defaultdict(dict)
        for name, value in constants.items():
            module, _, constant = name.rpartition(".")
            assert module not in sys.modules, f"{module} has been imported before"
            self._values[module][constant] = value

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._values:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        spec.loader = ChangedModule(fullname, spec.origin, self._values[fullname])
        return spec


def main(constants: str, *command: str) -> None:
    """Run the command as Python would, with these constants."""
    sys.meta_path.insert(0, ChangedModules(json.loads(constants)))
    if command[0] == "-m":
        sys.argv = [*command[1:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [*command]
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
