# Looks for the image in url. | url raised KeyError
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def url(self, public_id, seconds):
        return f"https://images.example/{public_id}?{len(self.images[public_id])}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
