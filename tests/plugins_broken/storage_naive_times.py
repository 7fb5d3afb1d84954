# Returns times without a time zone. | an aware datetime in UTC
from datetime import datetime

from pipeline.hooks import StoredImage, hookimpl
from tests.correct_storages import CorrectStorage


class Broken(CorrectStorage):
    def list(self, prefix):
        return [StoredImage(name, datetime.now()) for name in self.images if name.startswith(prefix)]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
