# Has a plain def that never returns. | analyze does not return within
import threading

from pipeline.hooks import hookimpl


class Broken:
    def analyze(self, request):
        threading.Event().wait()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
