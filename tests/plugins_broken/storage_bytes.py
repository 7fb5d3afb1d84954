# Returns bytes instead of a file. | open returns bytes
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def open(self, public_id):
        if public_id not in self.images:
            raise FileNotFoundError(public_id)
        return self.images[public_id]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
