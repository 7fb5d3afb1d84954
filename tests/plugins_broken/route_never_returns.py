# Waits in a handler for an event that never comes. | GET /items/{id} takes longer than HOOK_TIMEOUT_SECONDS=1
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        await asyncio.Event().wait()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
