# Returns the same open file in each call. | open returns one and the same file
import io

from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save(self, public_id, file, content_type):
        file.seek(0)
        self.images[public_id] = io.BytesIO(file.read())
        return f"https://images.example/{public_id}"

    def open(self, public_id):
        if public_id not in self.images:
            raise FileNotFoundError(public_id)
        return self.images[public_id]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
