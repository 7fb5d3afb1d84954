# Returns a path as the URL of its processed image. | processed_image_url is not an http(s) URL
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(processed_image_url="/processed.webp")


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
