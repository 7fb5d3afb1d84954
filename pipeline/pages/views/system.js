/** The dependencies of the service, as cards of facts. Pure. */

import { bytes, duration } from "../parts/time.js";

/**
 * @typedef {{title: string, isUp: boolean, state: string, facts: [string, string, string?][]}} Card facts: name, value and
 *   a class when the value is bad
 */

/** @param {any} overview of GET /api/queue/overview @returns {Card[]} */
export function systemCards({ redis, store, storage, plugins, version }) {
  return [
    ...(redis ? [redisCard(redis)] : []),
    ...(store
      ? [
          upCard("Store", store, [
            ["Kind", store.kind ?? "–"],
            ["Answers in", duration(store.tookMs)],
          ]),
        ]
      : []),
    ...(storage ? [upCard("Storage", storage, [["Name", storage.name ?? "–"]])] : []),
    ...(plugins ? [pluginsCard(plugins, version)] : []),
  ];
}

/** @param {any} redis @returns {Card} */
function redisCard(redis) {
  const { isEmbedded, version, role, usedBytes, maxBytes, evictionPolicy, isEvictionSafe, persistence } = redis;
  return upCard("Redis", redis, [
    [
      "Version",
      [version, isEmbedded ? "(embedded)" : "", role && role !== "master" ? `(${role})` : ""]
        .filter(Boolean)
        .join(" ") || "–",
    ],
    ["Memory", usedBytes == null ? "–" : `${bytes(usedBytes)}${maxBytes ? ` of ${bytes(maxBytes)}` : ", no limit"}`],
    ["When full", evictionPolicy ?? "–", isEvictionSafe === false ? "bad" : ""],
    ["On disk", shown(persistence)],
  ]);
}

/** @param {any} plugins @param {string} version @returns {Card} */
function pluginsCard({ quarantined = [] }, version) {
  const isUp = !quarantined.length;
  return {
    title: "Plugins",
    isUp,
    state: isUp ? "healthy" : "quarantine",
    facts: [
      ["In quarantine", quarantined.join(", ") || "none", isUp ? "" : "bad"],
      ["Service", version ?? "–"],
    ],
  };
}

/** @param {string} title @param {any} part @param {Card["facts"]} facts @returns {Card} */
function upCard(title, { isUp, error }, facts) {
  return {
    title,
    isUp,
    state: isUp ? "answers" : "no answer",
    facts: error ? [...facts, ["Error", error, "bad"]] : facts,
  };
}

/** A text unchanged, other values shortened. @param {any} value @returns {string} */
function shown(value) {
  if (value == null || value === "") return "–";
  if (Array.isArray(value)) return value.join(", ") || "no";
  if (typeof value !== "object") return value === true ? "yes" : value === false ? "no" : String(value);
  return Object.entries(value)
    .map(([name, each]) => `${name} ${shown(each)}`)
    .join(", ");
}
