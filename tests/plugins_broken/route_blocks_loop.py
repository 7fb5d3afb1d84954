# Sleeps on the event loop in a handler. | GET /items/{id} blocks the event loop
import time

from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        time.sleep(0.4)
        return PluginReply(json={})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
