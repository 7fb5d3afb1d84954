/**
 * The faults of a service, read from its overview, and what a person can do about them. Pure.
 *
 * @typedef {object} Trouble
 * @property {"bad" | "warn"} kind bad: work has stopped, or may be lost
 * @property {string} text
 * @property {string} [todo]
 * @property {string} [code] a command or setting that helps
 * @property {string} [reason] the error's own text
 * @property {number} [nextTryAt] in ms of the server's clock
 * @property {{href: string, text: string}} [link]
 */

import { bytes, duration } from "../parts/time.js";

const FULL = 0.85; // of Redis' memory
const OLD_SECONDS = 300;

/** @param {any} overview of GET /api/queue/overview @returns {Trouble[]} the worst first */
export function troublesOf(overview) {
  const found = [
    ...parts(overview),
    ...memory(overview.redis),
    ...work(overview),
    ...paused(overview.queues),
    ...holds(overview),
    ...late(overview),
  ];
  return [...found.filter(({ kind }) => kind === "bad"), ...found.filter(({ kind }) => kind === "warn")];
}

/** @param {any} overview @returns {Trouble[]} */
function parts({ redis, queues = [], store, storage, tasks = [] }) {
  // The user of Redis may have all rights except INFO.
  const isRedisDown = redis && !redis.isUp && queues.every((/** @type {any} */ queue) => queue.error);
  const found = [];
  if (isRedisDown)
    found.push(
      bad("Redis does not answer.", "Uploads are still accepted. They are processed when Redis is back.", redis.error),
    );
  if (redis?.isUp && redis.error)
    found.push(
      bad(
        "Redis cannot write to its disk.",
        "Redis may refuse jobs, and lose them when it stops. Check whether its disk is full.",
        redis.error,
      ),
    );
  const refused = "Uploads are refused until it is back.";
  if (store && !store.isUp) found.push(bad(`The store (${store.kind}) does not answer.`, refused, store.error));
  if (storage && !storage.isUp)
    found.push(bad(`The image storage (${storage.name}) does not answer.`, refused, storage.error));
  return [...found, ...tasks.map(failingTask)];
}

/** @param {any} fault */
function failingTask(fault) {
  return bad(
    "A task of the service keeps failing.",
    "The service retries it automatically.",
    typeof fault === "string" ? fault : JSON.stringify(fault),
  );
}

/** @param {any} redis @returns {Trouble[]} */
function memory(redis) {
  if (!redis?.isUp) return [];
  const { usedBytes, maxBytes, evictionPolicy, isEvictionSafe, role } = redis;
  const isFull = maxBytes > 0 && usedBytes > FULL * maxBytes;
  return [
    ...(isEvictionSafe === false
      ? [
          {
            ...bad(
              `Redis may delete jobs: its eviction policy is ${evictionPolicy}.`,
              "Change it with this command, and in redis.conf:",
            ),
            code: "redis-cli CONFIG SET maxmemory-policy noeviction",
          },
        ]
      : []),
    ...(isFull
      ? [
          warn(
            `Redis has used ${bytes(usedBytes)} of ${bytes(maxBytes)}.`,
            "When it is full, jobs cannot be enqueued. Give it more memory.",
          ),
        ]
      : []),
    ...(role && role !== "master"
      ? [warn(`Redis is a ${role} and accepts no writes.`, "The service looks for the master automatically.")]
      : []),
  ];
}

/** @param {any} overview @returns {Trouble[]} */
function work({ workersAlive, queues = [], plugins }) {
  const broken = queues.filter(
    (/** @type {any} */ queue) => queue.error && queues.some((/** @type {any} */ other) => !other.error),
  );
  const held = queues
    .flatMap((/** @type {any} */ queue) => queue.holds ?? [])
    .map((/** @type {any} */ { provider }) => `provider ${provider}`);
  // A provider that is not called for now has a line of its own.
  const quarantined = (plugins?.quarantined ?? []).filter((/** @type {string} */ name) => !held.includes(name));
  return [
    ...(workersAlive === 0
      ? [
          {
            ...bad("No worker is alive: no photo is processed.", "Start a worker process:"),
            code: "ROLE=worker python run.py",
          },
        ]
      : []),
    ...broken.map((/** @type {any} */ { name, error }) =>
      warn(`The state of the queue ${name} is unknown.`, undefined, error),
    ),
    ...(quarantined.length
      ? [
          {
            ...warn(
              `${quarantined.join(", ")} ${quarantined.length > 1 ? "are" : "is"} in quarantine after too many errors.`,
            ),
            link: { href: "/console/plugins", text: "See the plugins" },
          },
        ]
      : []),
  ];
}

/** @param {any[]} queues @returns {Trouble[]} */
function paused(queues = []) {
  return queues
    .filter((queue) => queue.paused)
    .map(({ name }) => warn(`The queue ${name} is paused.`, "Its jobs wait; running ones finish."));
}

/** @param {any} overview @returns {Trouble[]} */
function holds({ queues = [], serverTime }) {
  return queues
    .flatMap((/** @type {any} */ queue) => queue.holds ?? [])
    .map((/** @type {any} */ { provider, reason, cause, nextTryInSeconds }) => ({
      ...warn(`${provider} is not called for now.`, undefined, [reason, cause].filter(Boolean).join(". ")),
      nextTryAt: nextTryInSeconds == null ? undefined : Date.parse(serverTime) + nextTryInSeconds * 1000,
    }));
}

/** @param {any} overview @returns {Trouble[]} */
function late({ queues = [], workersAlive }) {
  if (workersAlive === 0) return [];
  return queues
    .filter(
      (/** @type {any} */ { oldestReadySeconds, paused: isPaused }) => oldestReadySeconds > OLD_SECONDS && !isPaused,
    )
    .map((/** @type {any} */ { name, oldestReadySeconds }) =>
      warn(
        `The oldest job of ${name} has waited ${duration(oldestReadySeconds * 1000, true)}.`,
        "More jobs arrive than the processes can handle: add processes or slots, or see which users send them.",
        undefined,
        { href: "/console/users", text: "Users with the most jobs" },
      ),
    );
}

/** @param {string} text @param {string} [todo] @param {string | null} [reason] @returns {Trouble} */
function bad(text, todo, reason) {
  return { kind: "bad", text, todo, reason: reason ?? undefined };
}

/** @param {string} text @param {string} [todo] @param {string | null} [reason] @param {Trouble["link"]} [link] @returns {Trouble} */
function warn(text, todo, reason, link) {
  return { kind: "warn", text, todo, reason: reason ?? undefined, link };
}
