# Returns other bytes than were saved. | open returns other bytes than were saved
import io

from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def open(self, public_id):
        if public_id not in self.images:
            raise FileNotFoundError(public_id)
        return io.BytesIO(b"<html>Not found</html>")


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
