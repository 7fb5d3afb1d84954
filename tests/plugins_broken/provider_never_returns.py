# Waits for an event that never comes. | analyze does not return within
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        await asyncio.Event().wait()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
