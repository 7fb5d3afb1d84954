# Fails for a job without an attempt. | job_finished raised ZeroDivisionError
from pipeline.hooks import hookimpl


@hookimpl
def job_finished(event):
    1 / event.attempt
