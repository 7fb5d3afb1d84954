# Stores only the first 64 KB. | of a large image
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save(self, public_id, file, content_type):
        file.seek(0)
        self.images[public_id] = file.read(65536)
        return f"https://images.example/{public_id}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
