# Times without a zone. | an aware datetime in UTC
import io
from datetime import datetime

from pipeline.hooks import StoredImage

from pipeline.hooks import hookimpl


class Broken:
    def __init__(self):
        self.kept = {}

    def save(self, public_id, file, content_type):
        file.seek(0)
        self.kept[public_id] = file.read()
        return f"https://images.example/{public_id}"

    def open(self, public_id):
        if public_id not in self.kept:
            raise FileNotFoundError(public_id)
        return io.BytesIO(self.kept[public_id])

    def delete(self, public_id):
        self.kept.pop(public_id, None)

    def check(self):
        pass

    def list(self, prefix):
        return [StoredImage(name, datetime.now()) for name in self.kept if name.startswith(prefix)]


@hookimpl
def register_storage_backends(settings):
    yield "broken", Broken
