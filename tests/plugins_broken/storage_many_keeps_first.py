# Does not replace an image in save_many. | save_many mixes up its images, or leaves some out
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save_many(self, images):
        for each in images:
            self.images.setdefault(each.public_id, each.file.read())
        return [f"https://images.example/{each.public_id}" for each in images]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
