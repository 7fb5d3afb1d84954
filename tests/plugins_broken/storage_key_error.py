# Raises KeyError for an image that is not there. | raise FileNotFoundError for an image that is not there
import io

from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def open(self, public_id):
        return io.BytesIO(self.images[public_id])


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
