# Does not close its log file. | files stay open after close
import tempfile
from pathlib import Path

from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self):
        self.log = open(Path(tempfile.gettempdir()) / "broken-plugin.log", "a")  # noqa: SIM115

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
