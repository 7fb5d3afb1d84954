# Returns URLs under the name of another plugin. | its routes are under /plugins/broken/
from urllib.parse import quote

from pipeline.hooks import hookimpl
from tests.correct_storages import ServedStorage


class Broken(ServedStorage):
    def save(self, public_id, file, content_type):
        super().save(public_id, file, content_type)
        return f"{self.base}/plugins/mine/images/{quote(public_id, safe='')}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
