# Keeps the room of the event in self. | notify mixes up calls that run at once
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        self.room = f"user:{notification.user_id}"
        await asyncio.sleep(0.01)
        await notification.rooms.publish(self.room, notification.event)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
