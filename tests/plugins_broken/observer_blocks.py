# Blocks the event loop. | job_finished blocks the event loop for
import time

from pipeline.hooks import hookimpl


@hookimpl
async def job_finished(event):
    time.sleep(0.4)
