# No mistake: a correct storage. | nothing
from pipeline.hooks import hookimpl
from tests.correct_storages import ServedStorage


@hookimpl
def register_storage_backends(settings):
    yield "broken", ServedStorage
