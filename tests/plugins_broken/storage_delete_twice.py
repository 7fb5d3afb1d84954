# Fails when it deletes an image for the second time. | for an image that is gone: do nothing then
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def delete(self, public_id):
        del self.images[public_id]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
