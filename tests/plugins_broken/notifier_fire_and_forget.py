# Is durable, but returns before it has delivered the event. | notify returns before the event is delivered
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    durable = True

    async def notify(self, notification):
        self.task = asyncio.create_task(asyncio.sleep(0.2))


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
