# Deletes all images whose public_id begins with the given one. | delete harms an image with a similar public_id
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def delete(self, public_id):
        self.images = {key: value for key, value in self.images.items() if not key.startswith(public_id)}


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
