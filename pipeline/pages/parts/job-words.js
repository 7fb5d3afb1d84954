/** The title and the state of a job, as texts and elements for all lists of jobs. */

import { h } from "../dom.js";
import { number, time } from "./time.js";

/** The states in the order of a job's life, as tabs name them. */
export const STATES = [
  { value: "", label: "All" },
  { value: "waiting", label: "Waiting" },
  { value: "delayed", label: "Delayed" },
  { value: "active", label: "Running" },
  { value: "completed", label: "Completed" },
  { value: "failed", label: "Failed" },
  { value: "background", label: "Reanalysis" },
];
/** @type {Record<string, [string, string]>} word and look */
const LOOKS = {
  waiting: ["Waiting", ""],
  delayed: ["Delayed", "warn"],
  active: ["Running", "busy"],
  completed: ["Completed", "good"],
  failed: ["Failed", "bad"],
  partial: ["Partial", "warn"],
  cancelled: ["Cancelled", "bad"],
  unlisted: ["Moved on", "unlisted"],
};

/** @param {any} job */
export function stateBadge(job) {
  const [word, look] = LOOKS[finerState(job)] ?? [job.state, ""];
  return h("span", { class: `badge ${look}` }, word);
}

/** The reason of its state, and the next step. @param {any} job @returns {any[]} texts and elements */
export function stateDetails(job) {
  if (job.isUnlisted) return ["It has left this list."];
  const parts = { waiting, delayed, active, completed, failed }[/** @type {"waiting"} */ (job.state)]?.(job) ?? [];
  return parts.filter(Boolean).flatMap((part, at) => (at ? [" · ", part] : [part]));
}

/** Its title: the values from the AI, otherwise its category. @param {any} job */
export function nameOf({ brand, model, category }) {
  return [brand, model].filter(Boolean).join(" ") || category;
}

/** @param {any} job */
export function hrefOf({ assetId }) {
  return `/console/jobs/${encodeURIComponent(assetId)}`;
}

/** Like "1 job", "1,240 jobs". @param {number} count @param {boolean} [isExact] */
export function jobs(count, isExact = true) {
  return `${isExact ? "" : "at least "}${number(count)} ${count === 1 ? "job" : "jobs"}`;
}

/** @param {any} job */
function finerState(job) {
  if (job.isUnlisted) return "unlisted";
  if (job.status === "partial" && job.state === "completed") return "partial";
  return job.state === "failed" && job.reason === "Cancelled" ? "cancelled" : job.state;
}

/** @param {any} job */
function waiting({ position, reason, nextAt }) {
  const place =
    position === 1 ? "Next in line" : position ? `Place ${number(position)} in line` : reason ? "" : "In line";
  return [place, reason, nextAt && h("span", {}, "next try ", time(nextAt, "until"))];
}

/** @param {any} job */
function delayed({ attempt, reason, nextAt }) {
  return [
    nextAt ? h("span", {}, attempt ? "Next try " : "Starts ", time(nextAt, "until")) : "Waits for its next try",
    attempt ? `after attempt ${attempt}` : "",
    reason,
  ];
}

/** @param {any} job */
function active({ attempt, provider }) {
  return [attempt ? `Attempt ${attempt}` : "Running", provider && `with ${provider}`];
}

/** @param {any} job */
function completed({ status, reason, attempt }) {
  return [status === "partial" ? reason || "Not everything was found" : "", attempt > 1 ? `At attempt ${attempt}` : ""];
}

/** @param {any} job */
function failed({ reason, attempt }) {
  return [
    reason === "Cancelled" ? "" : reason || "No reason is known",
    attempt > 1 && !reason?.includes("attempts") ? `after ${attempt} attempts` : "",
  ];
}
