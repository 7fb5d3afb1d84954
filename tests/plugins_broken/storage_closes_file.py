# Closes the file it is given. | save closes the file
from pipeline.hooks import hookimpl
from tests.sound_storages import SoundStorage


class Broken(SoundStorage):
    def save(self, public_id, file, content_type):
        url = super().save(public_id, file, content_type)
        file.close()
        return url


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
