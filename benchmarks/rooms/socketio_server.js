// The Socket.IO server of the comparison, one process: node socketio_server.js SECRET [REDIS_URL], with its packages on
// NODE_PATH. It follows the "Performance tuning" page of Socket.IO, but keeps ws as the WebSocket server: the native
// add-ons are installed, only the WebSocket transport is on, the first request is dropped. Prints its port;
// GET /emit?count=&rate=&users= emits. With Redis: the sharded adapter, which subscribes to rooms as ours does.
"use strict";
const http = require("node:http");
const jwt = require("jsonwebtoken");
const { Server } = require("socket.io");

const SLICE = 100;
const PACE_MS = 5;
const [secret, redisUrl] = process.argv.slice(2);

// The same as make_event in emission.py.
function makeEvent(number) {
  const moment = String(process.hrtime.bigint()).padStart(19, "0");
  return {
    event: "asset_processed",
    assetId: number.toString(16).padStart(24, "0"),
    status: "active",
    aiMetadata: {
      brand: { value: `Nike ${String(number).padStart(8, "0")} ${moment}`, confidence: 0.95 },
      model: { value: "Air Max 90", confidence: 0.88 },
      colorway: { value: "Infrared", confidence: 0.72 },
    },
    processedImageUrl: "https://images.example.com/65b9f0a4c2d1e3f4/processed-1.png",
    timestamp: "2026-01-31T12:00:07.456Z",
  };
}

async function emit(io, count, rate, users) {
  const startedAt = performance.now();
  let done = 0;
  while (done < count) {
    const due = rate ? Math.floor(((performance.now() - startedAt + PACE_MS) * rate) / 1000) : done + SLICE;
    for (const last = Math.min(count, due); done < last; done++) {
      io.to(`user:user-${done % users}`).emit("asset_processed", makeEvent(done));
    }
    const waitMs = rate ? startedAt + (done * 1000) / rate - performance.now() : 0;
    await new Promise((go) => (waitMs > 0 ? setTimeout(go, waitMs) : setImmediate(go)));
  }
}

async function main() {
  const options = { transports: ["websocket"], perMessageDeflate: false, serveClient: false };
  if (redisUrl) {
    const { createClient } = require("redis");
    const { createShardedAdapter } = require("@socket.io/redis-adapter");
    const publisher = createClient({ url: redisUrl });
    const subscriber = publisher.duplicate();
    await Promise.all([publisher.connect(), subscriber.connect()]);
    options.adapter = createShardedAdapter(publisher, subscriber, { subscriptionMode: "dynamic" });
  }
  const server = http.createServer(async (request, response) => {
    const query = new URL(request.url, "http://localhost").searchParams;
    await emit(io, ...["count", "rate", "users"].map((name) => Number(query.get(name))));
    response.end("ok");
  });
  const io = new Server(server, options);
  io.engine.on("connection", (raw) => {
    raw.request = null;
  });
  io.use((socket, next) => {
    jwt.verify(socket.handshake.auth.token, secret, { algorithms: ["HS256"] }, (error, claims) => {
      if (!error) socket.join(`user:${claims.sub}`);
      next(error);
    });
  });
  server.listen(0, "127.0.0.1", 1024, () => console.log(server.address().port));
}

main();
