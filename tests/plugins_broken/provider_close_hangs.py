# Waits in close for an event that never comes. | close does not return within
import asyncio

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis()

    async def close(self):
        await asyncio.Event().wait()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
