# Returns coroutines that it does not await. | notify_many returned a coroutine among its answers
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        return [self.notify(each) for each in notifications]


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
