# check returns False. | check returns False
from pipeline.hooks import hookimpl
from tests.sound_storages import SoundStorage


class Broken(SoundStorage):
    def check(self):
        return False


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
