// The service as a Node team would write it: Express, Multer in memory, the image in a local folder, the asset in MongoDB
// (or in no database, without a URL), a BullMQ job that runs in the same process, the result to the user's WebSockets.
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs/promises");
const http = require("node:http");
const path = require("node:path");
const { Queue, Worker } = require("bullmq");
const express = require("express");
const Redis = require("ioredis");
const jwt = require("jsonwebtoken");
const { MongoClient, ObjectId } = require("mongodb");
const multer = require("multer");
const { WebSocketServer } = require("ws");

const { REDIS_URL, MONGODB_URI, AI_SERVICE_URL, JWT_SECRET, MEDIA } = process.env;
const CATEGORIES = ["sneaker", "lego", "camera", "other"];
const RETENTION = { removeOnComplete: { age: 86400 }, removeOnFail: { age: 604800 } };
const RETRIES = { attempts: 3, backoff: { type: "exponential", delay: 2000 } };

const verify = (token) => jwt.verify(token, JWT_SECRET, { algorithms: ["HS256"] });

async function main() {
  const connection = new Redis(REDIS_URL, { maxRetriesPerRequest: null });
  const queue = new Queue("ai-processing", { connection, defaultJobOptions: { ...RETENTION, ...RETRIES } });
  const mongo = MONGODB_URI ? await new MongoClient(MONGODB_URI).connect() : null;
  const assets = mongo?.db().collection("assets");
  await assets?.createIndex({ userId: 1, createdAt: -1 });

  const app = express();
  const upload = multer({ storage: multer.memoryStorage(), limits: { fileSize: 10 * 1024 * 1024 } });
  app.get("/livez", (_request, response) => response.json({ status: "ok" }));
  app.post(
    "/api/assets/analyze-queue",
    (request, response, next) => {
      try {
        request.user = verify((request.headers.authorization || "").replace("Bearer ", ""));
        next();
      } catch {
        response.status(401).json({ success: false });
      }
    },
    upload.single("image"),
    async (request, response) => {
      if (!request.file || !CATEGORIES.includes(request.body.category)) {
        response.status(400).json({ success: false });
        return;
      }
      const assetId = new ObjectId().toHexString();
      const name = `${assetId}-${crypto.randomBytes(4).toString("hex")}.png`;
      await fs.writeFile(path.join(MEDIA, name), request.file.buffer);
      const { sub: userId } = request.user;
      const now = new Date();
      const imageUrl = `http://127.0.0.1/media/${name}`;
      const { category } = request.body;
      await assets?.insertOne({
        _id: assetId,
        userId,
        category,
        status: "processing",
        imageUrl,
        createdAt: now,
        updatedAt: now,
      });
      const job = await queue.add(
        "analyze",
        { assetId, userId, imageUrl, category, createdAt: now },
        { jobId: assetId },
      );
      const data = { assetId, jobId: job.id, status: "processing", message: "Asset queued for AI analysis" };
      response.status(202).json({ success: true, data });
    },
  );

  const server = http.createServer(app);
  const rooms = new Map();
  new WebSocketServer({ server, path: "/ws" }).on("connection", (socket, request) => {
    const { sub } = verify((request.headers.authorization || "").replace("Bearer ", ""));
    rooms.set(sub, (rooms.get(sub) || new Set()).add(socket));
    socket.on("close", () => rooms.get(sub).delete(socket));
    socket.send(JSON.stringify({ event: "connected", room: `user:${sub}` }));
  });
  const analyze = async ({ data: { assetId, userId, imageUrl, category } }) => {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ assetId, imageUrl, category });
    const reply = await fetch(`${AI_SERVICE_URL}/analyze`, { method: "POST", headers, body });
    const aiMetadata = await reply.json();
    const finishedAt = new Date();
    await assets?.updateOne(
      { _id: assetId },
      { $set: { status: "active", aiMetadata, finishedAt, updatedAt: finishedAt } },
    );
    const event = JSON.stringify({
      event: "asset_processed",
      assetId,
      status: "active",
      aiMetadata,
      timestamp: finishedAt,
    });
    for (const socket of rooms.get(userId) || []) socket.send(event);
  };
  const own = new Redis(REDIS_URL, { maxRetriesPerRequest: null });
  new Worker("ai-processing", analyze, { connection: own, concurrency: 5, ...RETENTION });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}

main();
