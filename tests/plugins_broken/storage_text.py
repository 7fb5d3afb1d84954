# Opens images as text. | open it in binary mode
import io

from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def open(self, public_id):
        if public_id not in self.images:
            raise FileNotFoundError(public_id)
        return io.StringIO(self.images[public_id].decode("latin-1"))


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
