# Yields names in list. | yield StoredImage(public_id, stored_at)
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def list(self, prefix):
        return [name for name in self.images if name.startswith(prefix)]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
