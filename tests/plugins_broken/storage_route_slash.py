# Does not quote the slashes of the id in its URL. | where no route of it is
from pipeline.hooks import hookimpl
from tests.correct_storages import ServedStorage


class Broken(ServedStorage):
    def save(self, public_id, file, content_type):
        super().save(public_id, file, content_type)
        return f"{self.base}/plugins/broken/images/{public_id}"


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
