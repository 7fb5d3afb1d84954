# Returns an object. | return nothing, or a text
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        return object()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
