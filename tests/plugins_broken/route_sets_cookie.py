# Sets a cookie. | is set by the service, not by a plugin
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        return PluginReply(headers={"Set-Cookie": "seen=1"})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
