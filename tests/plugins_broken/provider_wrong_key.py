# Fails in every call: its key is refused. | analyze raised RetryableJobError: The service refuses our key
from pipeline.errors import RetryableJobError
from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        raise RetryableJobError("The service refuses our key")


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
