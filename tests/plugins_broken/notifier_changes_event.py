# Adds a field to the event. | notify changes the event
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        notification.event["seen"] = True


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
