# Fails in check. | check raised AttributeError
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def check(self):
        self.client.ping()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
