// BullMQ with the roles of noop_job.py. It removes finished jobs at once: it is slower when it keeps them.
"use strict";

const { Queue, Worker } = require("bullmq");
const Redis = require("ioredis");

const [role, url, text] = process.argv.slice(2);
const count = Number(text);
const SLOTS = 5;
const TRICKLE = 200;
const GAP_MS = 20;
const BATCH = 1000;
const PAYLOAD = {
  assetId: "0".repeat(24),
  userId: "user-1",
  imageUrl: "https://images.example/" + "x".repeat(140),
  category: "lego",
};
const OPTIONS = { removeOnComplete: true, removeOnFail: true };
const say = (figures) => process.stdout.write(JSON.stringify(figures) + "\n");
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const cpu = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

function work(connection) {
  let seen = 0;
  let startedAt = 0;
  let cpuBefore = 0;
  const waits = [];
  const noop = async (job) => {
    if (job.data.sentAt) {
      if (waits.push(now() - job.data.sentAt) === TRICKLE) say({ waits });
      return;
    }
    seen += 1;
    if (seen === 1) [startedAt, cpuBefore] = [now(), cpu()];
    if (seen === count) say({ seconds: now() - startedAt, cpu: cpu() - cpuBefore });
  };
  new Worker("bench", noop, { connection, concurrency: SLOTS, ...OPTIONS });
}

async function main() {
  const connection = new Redis(url, { maxRetriesPerRequest: null });
  if (role === "work") return work(connection);
  const queue = new Queue("bench", { connection, defaultJobOptions: OPTIONS });
  await queue.waitUntilReady();
  const startedAt = now();
  if (role === "enqueue") {
    for (let number = 0; number < count; number += 1) await queue.add("noop", PAYLOAD);
  } else if (role === "bulk") {
    const jobs = Array.from({ length: count }, () => ({ name: "noop", data: PAYLOAD }));
    for (let first = 0; first < count; first += BATCH) await queue.addBulk(jobs.slice(first, first + BATCH));
  }
  say({ seconds: now() - startedAt });
  if (role === "trickle") {
    for (let number = 0; number < TRICKLE; number += 1) {
      await queue.add("noop", { ...PAYLOAD, sentAt: now() });
      await new Promise((resolve) => setTimeout(resolve, GAP_MS));
    }
  }
  await queue.close();
  await connection.quit();
}

main();
