# What the storages here are but for their mistake. | nothing
from pipeline.hooks import hookimpl
from tests.correct_storages import ServedStorage


@hookimpl
def register_storage_backends(settings):
    yield "broken", ServedStorage
