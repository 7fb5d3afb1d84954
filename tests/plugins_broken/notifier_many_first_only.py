# Returns after the first event of a batch. | notify_many leaves out
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        for each in notifications:
            await each.rooms.publish(f"user:{each.user_id}", each.event)
            return [None] * len(notifications)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
