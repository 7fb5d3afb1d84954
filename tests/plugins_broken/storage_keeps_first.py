# Does not replace an image. | save does not replace what was there
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save(self, public_id, file, content_type):
        file.seek(0)
        self.images.setdefault(public_id, file.read())
        return f"https://images.example/{public_id}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
