# Raises a library's error for a broken image. | raise RetryableJobError or PermanentJobError
import io

from PIL import Image

from pipeline.hooks import Analysis, hookimpl


class Broken:
    needs_image = True

    def analyze(self, request):
        Image.open(io.BytesIO(request.image))
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
