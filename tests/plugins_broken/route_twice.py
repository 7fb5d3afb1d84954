# Adds a route twice. | the plugin has it already
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        return PluginReply()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
