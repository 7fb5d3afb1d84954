# Returns only the URL of the first image. | save_many returns 'https://images.example/suite/65fa/image-0'
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save_many(self, images):
        urls = [self.save(each.public_id, each.file, each.content_type) for each in images]
        return urls[0]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
