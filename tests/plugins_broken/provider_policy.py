# Sets an event loop policy. | it sets the event loop policy
import asyncio

from pipeline.hooks import Analysis, hookimpl


class Policy(asyncio.DefaultEventLoopPolicy):
    pass


class Broken:
    async def analyze(self, request):
        asyncio.set_event_loop_policy(Policy())
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
