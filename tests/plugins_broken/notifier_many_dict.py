# Returns a dict with an answer for each user. | notify_many returned dict, neither None nor a list
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        return {each.user_id: None for each in notifications}


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
