# Raises the error of one event for all events of the batch. | notify_many raised ValueError
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        for each in notifications:
            _, _ = each.user_id.split("-")


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
