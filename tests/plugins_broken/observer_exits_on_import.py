# Calls sys.exit when it is imported. | SystemExit
import sys

from pipeline.hooks import hookimpl

sys.exit("no licence")


@hookimpl
def job_finished(event):
    pass
