# Quotes the id in its URL twice. | GET /images/{id} refuses what save returns (NotFound
from urllib.parse import quote

from pipeline.hooks import hookimpl
from tests.correct_storages import ServedStorage


class Broken(ServedStorage):
    def save(self, public_id, file, content_type):
        super().save(public_id, file, content_type)
        return f"{self.base}/plugins/broken/images/{quote(quote(public_id, safe=''))}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
