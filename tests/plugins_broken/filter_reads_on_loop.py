# Reads the image on the event loop. | reads the image on the event loop
from pipeline.hooks import hookimpl


@hookimpl
async def validate_upload(upload):
    upload.read()
