# Refuses an upload without a message. | refuses without a word
from pipeline.errors import ValidationError
from pipeline.hooks import hookimpl


@hookimpl
def validate_upload(upload):
    if upload.width < 10_000:
        raise ValidationError("")
