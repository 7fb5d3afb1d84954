# Raises the CancelledError of its own task. | lets a CancelledError escape
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        task = asyncio.create_task(asyncio.sleep(10))
        task.cancel()
        await task


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
