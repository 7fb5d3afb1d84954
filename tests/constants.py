"""Constants of the service that some tests need with another value, and the way to start a process with them.

Each value below is the address of a constant. `Service(..., **{MAX_STALLS: "2"})` changes it in a process of the
service: it starts `python -m tests.constants '{"pipeline...": 2}' run.py`. Any other command line can start like this.
`monkeypatch.setattr(PING_SECONDS, 0.1)` changes it in the process of the test, if the code reads it at each use.
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
BREAKER_FAILURES = "pipeline.hooks.bound_plugin.BREAKER_FAILURES"
BREAKER_PROBE_SECONDS = "pipeline.hooks.bound_plugin.BREAKER_PROBE_SECONDS"
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
    """Return the arguments of Python that run the command with these values of these constants."""
    values = {name: json.loads(value) for name, value in constants.items()}
    return ["-m", "tests.constants", json.dumps(values), *command] if values else [*command]


class ChangedModule(SourceFileLoader):
    """Loads a module with other values of constants in its source.

    So the values that the import makes of these constants, such as defaults of arguments, change too.
    """

    def __init__(self, name: str, path: str, values: Mapping[str, object]) -> None:
        super().__init__(name, path)
        self._values = values

    def get_code(self, fullname: str) -> CodeType:
        tree, missing = ast.parse(self.get_data(self.path)), dict(self._values)
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id in missing:
                node.value = ast.copy_location(ast.Constant(missing.pop(target.id)), node.value)
        assert not missing, f"{fullname} has no constants {missing}"
        return compile(tree, self.path, "exec")


class ChangedModules(MetaPathFinder):
    """Finds the modules whose constants get other values."""

    def __init__(self, constants: Mapping[str, object]) -> None:
        self._values: dict[str, dict[str, object]] = defaultdict(dict)
        for name, value in constants.items():
            module, _, constant = name.rpartition(".")
            assert module not in sys.modules, f"{module} is already imported"
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
    """Run the command as Python would, with these values of the constants."""
    sys.meta_path.insert(0, ChangedModules(json.loads(constants)))
    if command[0] == "-m":
        sys.argv = [*command[1:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [*command]
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
