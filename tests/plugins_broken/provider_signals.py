# Handles SIGTERM. | it handles SIGTERM
import signal

from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self):
        signal.signal(signal.SIGTERM, lambda *_: None)

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
