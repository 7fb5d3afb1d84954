# Returns False to refuse an upload. | validate_upload returns False
from pipeline.hooks import hookimpl


@hookimpl
def validate_upload(upload):
    return upload.width > 10_000
