# Has a handler without an argument. | the handler must take one argument
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self):
        return PluginReply()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
