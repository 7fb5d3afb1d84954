# Returns JSON with a datetime. | its json cannot be encoded
from datetime import datetime

from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        return PluginReply(json={"at": datetime.now()})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
