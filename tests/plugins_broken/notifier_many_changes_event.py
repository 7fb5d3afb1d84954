# Adds a field to the events of a batch. | notify_many changes an event
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        for each in notifications:
            each.event["user"] = each.user_id


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
