# Declares batch_size as a text. | its batch_size is '50'
from pipeline.hooks import hookimpl


class Broken:
    batch_size = "50"

    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        pass


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
