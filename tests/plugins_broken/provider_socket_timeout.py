# Sets a timeout for all sockets of the process. | it sets socket.setdefaulttimeout
import socket

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        socket.setdefaulttimeout(5)
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
