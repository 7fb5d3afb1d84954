# check returns False. | check returns False
from pipeline.hooks import hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def check(self):
        return False


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
