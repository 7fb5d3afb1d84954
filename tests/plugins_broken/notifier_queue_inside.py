# Is durable, but puts the event into its own queue. | missed: a queue inside the plugin looks like any other state
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    durable = True

    async def start(self, context):
        self.queue = asyncio.Queue()
        context.task(self.deliver(), "deliver")

    async def notify(self, notification):
        self.queue.put_nowait(notification)

    async def deliver(self):
        while True:
            await self.queue.get()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
