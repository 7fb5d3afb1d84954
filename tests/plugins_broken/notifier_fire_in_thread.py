# Is durable, but delivers the event in its own thread. | notify returns before the event is delivered
import threading
import time

from pipeline.hooks import hookimpl


class Broken:
    durable = True

    def notify(self, notification):
        threading.Thread(target=time.sleep, args=(0.2,)).start()


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
