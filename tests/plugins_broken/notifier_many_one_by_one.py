# Delivers the events of a batch one by one. | notify_many takes longer than NOTIFIER_TIMEOUT_SECONDS=1
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        for _ in notifications:
            await asyncio.sleep(0.03)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
