# Keeps the current request in self. | analyze answers otherwise when calls run at once
import asyncio

from pipeline.hooks import Analysis, Attribute, hookimpl


class Broken:
    async def analyze(self, request):
        self.request = request
        await asyncio.sleep(0.05)
        return Analysis(brand=Attribute(self.request.category, 0.9))


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
