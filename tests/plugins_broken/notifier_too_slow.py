# Is slower than the timeout that is in force. | NOTIFIER_TIMEOUT_SECONDS=1, which is in force
import asyncio

from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        await asyncio.sleep(1.5)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
