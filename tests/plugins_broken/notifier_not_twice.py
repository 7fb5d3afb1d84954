# Refuses an event that it has already delivered. | when the same event came again
from pipeline.hooks import hookimpl


class Broken:
    def __init__(self):
        self.known = set()

    async def notify(self, notification):
        if notification.delivery_id in self.known:
            raise ValueError("delivered already")
        self.known.add(notification.delivery_id)


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
