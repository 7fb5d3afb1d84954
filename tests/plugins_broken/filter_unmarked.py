# Has a hook without @hookimpl. | validate_upload is never called
from pipeline.hooks import hookimpl


def validate_upload(upload):
    pass


@hookimpl
def transform_analysis(analysis):
    return None
