# Starts a child process and does not end it. | child processes go on after close
import subprocess

from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self):
        self.child = subprocess.Popen(["sleep", "60"])

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
