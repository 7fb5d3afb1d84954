# Has a public route that changes something. | is public and takes
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("POST", "/items", self.add, role="public")

    async def add(self, request):
        return PluginReply(201, json={})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
