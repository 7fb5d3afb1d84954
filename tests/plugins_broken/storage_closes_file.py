# Closes the file it is given. | save closes the file
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def save(self, public_id, file, content_type):
        url = super().save(public_id, file, content_type)
        file.close()
        return url


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
