# Reads the body with json.loads. | POST /items raised JSONDecodeError
import json

from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("POST", "/items", self.add)

    async def add(self, request):
        return PluginReply(201, json=json.loads(request.body))


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
