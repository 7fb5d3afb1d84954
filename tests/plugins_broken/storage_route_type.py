# Serves images without their content type. | GET /images/{id} says 'application/octet-stream' of an image
from pipeline.errors import NotFound
from pipeline.hooks import PluginReply, hookimpl
from tests.correct_storages import ServedStorage


class Broken(ServedStorage):
    async def show(self, request):
        if request.path_params["id"] not in self.images:
            raise NotFound("There is no such image")
        return PluginReply(body=self.images[request.path_params["id"]])


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
