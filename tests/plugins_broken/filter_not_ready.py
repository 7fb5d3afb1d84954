# Is never ready. | it is not ready: The list is not there yet; try again once it can be
from pipeline.hooks import NotReady, hookimpl


@hookimpl
def validate_upload(upload):
    raise NotReady("The list is not there yet")
