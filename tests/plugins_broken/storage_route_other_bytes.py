# Serves other bytes than were saved by its route. | GET /images/{id} shows other bytes than were saved
from pipeline.errors import NotFound
from pipeline.hooks import PluginReply, hookimpl
from tests.correct_storages import ServedStorage


class Broken(ServedStorage):
    async def show(self, request):
        if request.path_params["id"] not in self.images:
            raise NotFound("There is no such image")
        return PluginReply(body=b"<html>", content_type="image/gif")


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
