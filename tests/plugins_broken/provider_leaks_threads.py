# Starts a thread in each call and does not end it. | threads go on after close
import threading

from pipeline.hooks import Analysis, hookimpl


class Broken:
    def analyze(self, request):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
