# Configures the logging of the process. | it configures logging
import logging

from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self):
        logging.disable(logging.INFO)

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
