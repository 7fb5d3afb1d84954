# Leaves a running task for each job. | tasks go on after close
import asyncio

from pipeline.hooks import hookimpl


@hookimpl
async def job_finished(event):
    asyncio.create_task(asyncio.sleep(60))
