# Declares needs_image as a text. | needs_image is 'no'
from pipeline.hooks import Analysis, hookimpl


class Broken:
    needs_image = "no"

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
