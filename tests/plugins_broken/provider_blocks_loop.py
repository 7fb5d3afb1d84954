# Sleeps on the event loop. | analyze blocks the event loop for
import time

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        time.sleep(0.4)
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
