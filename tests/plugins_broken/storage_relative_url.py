# Returns a path instead of a URL. | return an absolute http(s) URL
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save(self, public_id, file, content_type):
        super().save(public_id, file, content_type)
        return f"/media/{public_id}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
