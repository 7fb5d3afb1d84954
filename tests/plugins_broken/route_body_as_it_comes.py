# Assumes that the body is an object. | POST /items raised TypeError
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("POST", "/items", self.add)

    async def add(self, request):
        return PluginReply(201, json={"name": request.json()["name"]})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
