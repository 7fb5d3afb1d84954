# Returns True for each event. | notify_many returned a bool among its answers
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        return [True for _ in notifications]


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
