# Declares durable as a text. | durable is 'false'
from pipeline.hooks import hookimpl


class Broken:
    durable = "false"

    async def notify(self, notification):
        pass


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
