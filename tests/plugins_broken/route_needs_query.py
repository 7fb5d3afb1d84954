# Assumes that the request has a query. | GET /items raised KeyError
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items", self.list)

    async def list(self, request):
        return PluginReply(json={"page": request.query["page"]})


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
