# Tells everybody. | notify publishes to user:everybody
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        await notification.rooms.publish("user:everybody", notification.event)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
