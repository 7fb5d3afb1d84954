# Needs in register_routes an attribute that start sets. | has no attribute 'prefix'
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", f"/{self.prefix}", self.show)

    async def start(self, context):
        self.prefix = "items"

    async def show(self, request):
        return PluginReply()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
