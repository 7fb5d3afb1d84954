# Does not await publish. | publish is not awaited
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        notification.rooms.publish(f"user:{notification.user_id}", notification.event)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
