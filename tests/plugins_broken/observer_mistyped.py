# Implements a hook that does not exist. | there is no hook job_finishd
from pipeline.hooks import hookimpl


@hookimpl
def job_finishd(event):
    pass
