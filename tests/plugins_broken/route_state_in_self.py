# Keeps the current request of a handler in self. | GET /items/{id} answers otherwise when calls run at once
import asyncio

from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        self.request = request
        await asyncio.sleep(0.02)
        return PluginReply(json={"user": self.request.user_id})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
