# Raises an error without a message for the owner. | without words for the owner
from pipeline.errors import PermanentJobError

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        if request.image is not None and not request.image.startswith(b"\xff\xd8"):
            raise PermanentJobError("")
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
