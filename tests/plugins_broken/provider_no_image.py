# Returns a processed image that is not an image. | processed_image holds bytes that are no image
from pipeline.hooks import Analysis, ProcessedImage, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(processed_image=ProcessedImage(b"<html>404</html>", "image/png"))


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
