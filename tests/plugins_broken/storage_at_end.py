# Returns a file whose position is its end. | open returns other bytes
import io

from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def open(self, public_id):
        if public_id not in self.images:
            raise FileNotFoundError(public_id)
        file = io.BytesIO()
        file.write(self.images[public_id])
        return file


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
