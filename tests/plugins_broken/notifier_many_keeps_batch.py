# Keeps the previous batch in self. | notify_many publishes to user:
from pipeline.hooks import hookimpl


class Broken:
    def __init__(self):
        self.batch = []

    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        self.batch += notifications
        for each in self.batch:
            await each.rooms.publish(f"user:{each.user_id}", each.event)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
