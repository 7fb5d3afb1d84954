# Passes a lambda to the sandbox. | RetryableJobError or PermanentJobError
from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self, sandbox):
        self.sandbox = sandbox

    async def analyze(self, request):
        await self.sandbox.run(lambda: None, seconds=5)
        return Analysis()


@hookimpl
def register_ai_providers(settings, sandbox):
    yield "broken", lambda: Broken(sandbox)
