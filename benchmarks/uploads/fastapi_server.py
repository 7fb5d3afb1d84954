"""The service as a Python team would write it: FastAPI, the image in a local folder, the asset in MongoDB (pymongo's
asynchronous client), an arq job that runs in the same process, the result to the user's WebSockets. uvicorn with
uvloop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import uvicorn
import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func
from bson import ObjectId
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from pymongo import AsyncMongoClient

SECRET, MEDIA = os.environ["JWT_SECRET"], Path(os.environ["MEDIA"])
AI_URL, REDIS = os.environ["AI_SERVICE_URL"], RedisSettings.from_dsn(os.environ["REDIS_URL"])
ROOMS: dict[str, set[WebSocket]] = {}
mongo: AsyncMongoClient[Any] = AsyncMongoClient(os.environ["MONGODB_URI"])
assets = mongo.get_default_database().assets


def user_of(headers: Any) -> str:
    try:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        return str(jwt.decode(token, SECRET, algorithms=["HS256"])["sub"])
    except jwt.InvalidTokenError as error:
        raise HTTPException(401) from error


async def analyze(context: dict[str, Any], job: dict[str, Any]) -> None:
    reply = await context["http"].post(f"{AI_URL}/analyze", json=job)
    now = datetime.now(UTC)
    result = {"status": "active", "aiMetadata": reply.json(), "finishedAt": now, "updatedAt": now}
    await assets.update_one({"_id": job["assetId"]}, {"$set": result})
    event = {"event": "asset_processed", "assetId": job["assetId"], "status": "active", "aiMetadata": reply.json()}
    text = json.dumps(event | {"timestamp": now.isoformat()})
    for socket in list(ROOMS.get(job["userId"], ())):
        with suppress(WebSocketDisconnect):
            await socket.send_text(text)


@asynccontextmanager
async def lifespan(app: FastAPI) -> Any:
    await assets.create_index([("userId", 1), ("createdAt", -1)])
    app.state.pool = await create_pool(REDIS)
    functions = [func(analyze, name="analyze", keep_result=86_400)]
    options = {"max_jobs": 5, "poll_delay": 0.01, "handle_signals": False, "ctx": {"http": httpx.AsyncClient()}}
    worker = Worker(functions, redis_settings=REDIS, **options)  # type: ignore[arg-type]
    working = asyncio.create_task(worker.main())
    yield
    working.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/livez")
async def livez() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/api/assets/analyze-queue")
async def submit(request: Request, image: UploadFile, category: str = Form()) -> JSONResponse:
    user_id = user_of(request.headers)
    if category not in ("sneaker", "lego", "camera", "other"):
        raise HTTPException(400)
    content = await image.read()
    asset_id = str(ObjectId())
    name = f"{asset_id}-{secrets.token_hex(4)}.png"
    await asyncio.to_thread((MEDIA / name).write_bytes, content)
    now = datetime.now(UTC)
    data = {"userId": user_id, "category": category, "imageUrl": f"http://127.0.0.1/media/{name}"}
    times = {"createdAt": now, "updatedAt": now}
    await assets.insert_one({"_id": asset_id, **data, "status": "processing", **times})
    await app.state.pool.enqueue_job("analyze", {"assetId": asset_id, **data}, _job_id=asset_id)
    reply = {"assetId": asset_id, "jobId": asset_id, "status": "processing", "message": "Asset queued for AI analysis"}
    return JSONResponse({"success": True, "data": reply}, status_code=202)


@app.websocket("/ws")
async def listen(socket: WebSocket) -> None:
    user_id = user_of(socket.headers)
    await socket.accept()
    room = ROOMS.setdefault(user_id, set())
    room.add(socket)
    await socket.send_text(json.dumps({"event": "connected", "room": f"user:{user_id}"}))
    async for _ in socket.iter_text():
        pass
    room.discard(socket)


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    uvloop.run(main())
