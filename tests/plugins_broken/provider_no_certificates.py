# Turns off the check of certificates in the process. | it sets which certificates are trusted
import ssl

from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self):
        ssl._create_default_https_context = ssl._create_unverified_context

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
