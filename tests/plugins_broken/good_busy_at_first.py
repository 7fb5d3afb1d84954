# No mistake: its AI service is busy at first and says for how long. | nothing
from pipeline.errors import RetryableJobError
from pipeline.hooks import Analysis, hookimpl

asked = []


class Good:
    async def analyze(self, request):
        asked.append(request)
        if len(asked) == 1:
            raise RetryableJobError("The service is busy", retry_after_seconds=0.3)
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Good
