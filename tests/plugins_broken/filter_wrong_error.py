# Refuses an upload with ValueError. | raise ValidationError to refuse
from pipeline.hooks import hookimpl


@hookimpl
def validate_upload(upload):
    if upload.width < 100:
        raise ValueError("too small")
