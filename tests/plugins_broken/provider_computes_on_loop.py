# Computes on the event loop. | analyze blocks the event loop for
import time

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        ends_at = time.thread_time() + 0.3
        while time.thread_time() < ends_at:
            pass
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
