# Makes a file path of a text from the client. | reads any file
from pathlib import Path

from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    def show(self, request):
        path = Path("data") / request.path_params["id"]
        return PluginReply(body=path.read_bytes() if path.is_file() else b"")


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
