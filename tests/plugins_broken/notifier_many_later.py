# Is durable, but returns before it has delivered the batch. | notify_many returns before the events are delivered
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    durable = True

    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        self.task = asyncio.create_task(asyncio.sleep(0.2))


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
