# Adds a route outside of its own paths. | each part of the path is
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/../assets", self.show)

    async def show(self, request):
        return PluginReply()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
