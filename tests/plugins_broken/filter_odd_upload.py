# Assumes that every upload is an image. | for one of 12 bytes that are no image, so the upload is refused with 503
from io import BytesIO

from PIL import Image

from pipeline.hooks import hookimpl


@hookimpl
def validate_upload(upload):
    Image.open(BytesIO(upload.read()))
