# Starts a task in each call and does not end it. | tasks go on after close
import asyncio

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        asyncio.create_task(asyncio.sleep(3600))
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
