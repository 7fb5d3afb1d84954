# Sets an exception handler of the event loop. | it sets an exception handler
import asyncio

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def start(self, context):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
