# Is slower than the timeout that is in force. | HOOK_TIMEOUT_SECONDS=1, which is in force
import time

from pipeline.hooks import hookimpl


@hookimpl
def job_started(event):
    time.sleep(1.5)
