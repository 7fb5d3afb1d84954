# Returns a dict from a handler. | the handler returned dict
from pipeline.hooks import hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        return {"id": request.path_params["id"]}


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
