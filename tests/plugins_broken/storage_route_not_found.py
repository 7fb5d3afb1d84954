# Quotes the id of its URL twice. | GET /images/{id} refuses what save returns (NotFound
import io
from urllib.parse import quote

from pipeline.errors import NotFound
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    def __init__(self):
        self.kept = {}

    async def start(self, context):
        self.base = context.settings.public_url

    def save(self, public_id, file, content_type):
        file.seek(0)
        self.kept[public_id] = file.read()
        return f"{self.base}/plugins/broken/images/{quote(quote(public_id, safe=''))}"

    def open(self, public_id):
        if public_id not in self.kept:
            raise FileNotFoundError(public_id)
        return io.BytesIO(self.kept[public_id])

    def delete(self, public_id):
        self.kept.pop(public_id, None)

    def check(self):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/images/{id}", self.show, role="public")

    async def show(self, request):
        if request.path_params["id"] not in self.kept:
            raise NotFound("There is no such image")
        return PluginReply(body=self.kept[request.path_params["id"]], content_type="image/gif")


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
