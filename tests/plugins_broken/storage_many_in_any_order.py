# Returns the answers for several images in another order. | return them in the order of the images
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save_many(self, images):
        urls = {self.save(each.public_id, each.file, each.content_type) for each in images}
        return sorted(urls, reverse=True)


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
