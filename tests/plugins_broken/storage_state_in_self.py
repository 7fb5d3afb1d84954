# Keeps the current id in self. | images saved at once are mixed up
import time

from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save(self, public_id, file, content_type):
        file.seek(0)
        self.public_id = public_id
        time.sleep(0.02)
        self.images[self.public_id] = file.read()
        return f"https://images.example/{public_id}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
