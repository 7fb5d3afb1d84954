"""The source of a storage plugin that refuses deletes while the file `refuse` is in the data folder."""

REFUSES = """
from pipeline.errors import DependencyUnavailable
from pipeline.hooks import hookimpl
from pipeline.usecases.image_urls import ImageUrls
from pipeline.plugins.storage_local import LocalStorage

class Refuses(LocalStorage):
    def __init__(self, folder):
        super().__init__(folder / "media", "http://127.0.0.1:8080")
        self.folder = folder

    def delete(self, public_id):
        if (self.folder / "refuse").exists():
            raise DependencyUnavailable("no")
        super().delete(public_id)

@hookimpl
def register_storage_backends(settings):
    yield "refuses", lambda: Refuses(settings.data_dir)
"""
