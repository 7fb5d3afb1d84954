# Ignores its cancellation. | it goes on although it was cancelled
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
