# Its key is not taken: every call fails. | analyze raised RetryableJobError: The service refuses our key
from pipeline.errors import RetryableJobError
from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        raise RetryableJobError("The service refuses our key")


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
