# Assumes that an id is a number. | GET /items/{id} raised ValueError
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        return PluginReply(json={"id": int(request.path_params["id"])})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
