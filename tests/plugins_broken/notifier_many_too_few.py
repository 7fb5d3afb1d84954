# Returns one answer for each user instead of one for each event. | notify_many returned 3 answers for 4 notifications
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    async def notify_many(self, notifications):
        return [None for _ in {each.user_id for each in notifications}]


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
