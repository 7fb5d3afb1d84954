# Is written for a future API version. | it was written for API version 9
from pipeline.hooks import hookimpl

API_VERSION = 9


@hookimpl
def transform_analysis(analysis):
    return None
