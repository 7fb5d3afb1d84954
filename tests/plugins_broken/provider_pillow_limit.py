# Removes Pillow's limit of image pixels. | missed: the service sets that limit itself, elsewhere
from PIL import Image

from pipeline.hooks import Analysis, hookimpl

Image.MAX_IMAGE_PIXELS = None


class Broken:
    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
