# Blocks the event loop for ever. | analyze blocks the event loop and never returns
import time

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        time.sleep(3600)


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
