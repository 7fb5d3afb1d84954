# Crashes in native code. | it ends the process (signal 11
import ctypes
import faulthandler

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        faulthandler.disable()
        ctypes.string_at(0)


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
