# Reads the file without going to its start. | call file.seek(0) first
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save(self, public_id, file, content_type):
        self.images[public_id] = file.read()
        return f"https://images.example/{public_id}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
