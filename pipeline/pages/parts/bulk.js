/** One action for all jobs that match a filter, or for selected ones. */

import { h } from "../dom.js";
import { hrefOf, jobs as countWords, nameOf } from "./job-words.js";
import { doInChunks } from "./chunks.js";
import { time } from "./time.js";

const AT_ONCE = 5;
const FEW = 20;
const CANCELLED = "8b47045eb7b8"; // the service's name for the kind of failure of cancelled jobs
/** @type {Record<string, {verb: string, past: string, text: string, isDangerous?: boolean, undo?: "retry" | "resume" | "keep"}>} */
export const ACTIONS = {
  retry: { verb: "Retry", past: "queued again", text: "The AI analyzes these photos again." },
  cancel: {
    verb: "Cancel",
    past: "cancelled",
    text: "They end as failed. The photos stay, so they can be run again.",
    undo: "retry",
  },
  postpone: {
    verb: "Postpone",
    past: "postponed",
    text: "They wait longer, so that other jobs run first.",
    undo: "resume",
  },
  resume: { verb: "Resume", past: "waiting again", text: "Postponed jobs are queued again at once." },
  reanalyze: {
    verb: "Analyze again",
    past: "to be analyzed again",
    text: "The AI analyzes these photos again when no other job waits. Each photo keeps its result until there is a new one.",
    undo: "keep",
  },
  keep: { verb: "Keep", past: "kept as they are", text: "Photos that wait for a new analysis keep their results." },
  delete: {
    verb: "Delete",
    past: "deleted",
    text: "The photos, their images and results are deleted. This cannot be undone.",
    isDangerous: true,
  },
};
const SPANS = [
  { value: "300", label: "5 minutes" },
  { value: "900", label: "15 minutes" },
  { value: "3600", label: "1 hour" },
  { value: "21600", label: "6 hours" },
  { value: "86400", label: "1 day" },
];

/**
 * @typedef {"retry" | "cancel" | "postpone" | "resume" | "delete" | "reanalyze" | "keep"} Action
 *
 * @typedef {object} BulkAction
 * @property {import("../api.js").Api} api
 * @property {Action} action
 * @property {Record<string, string>} [filter] as of GET /api/queue/jobs
 * @property {any[]} [jobs] selected jobs, instead of a filter
 * @property {string} [title] the question, like "Cancel all waiting jobs of anna?"
 * @property {string} [text] what happens, if the action's own text is not enough
 * @property {boolean} [isAsked] the person has confirmed already
 */

/**
 * Ask with the count and a sample, do it in chunks with progress, and show the result with undo.
 * @param {BulkAction} given
 * @returns {Promise<boolean>} whether anything was done
 */
export async function runBulk(given) {
  const { action, filter = {}, jobs, title, isAsked } = given;
  const { verb, past, text, isDangerous } = ACTIONS[action];
  const seconds = h(
    "select",
    { name: "seconds" },
    SPANS.map(({ value, label }) => h("option", { value, selected: value === "3600" }, label)),
  );
  const source = jobs ? ofJobs(given, seconds) : ofFilter(given, seconds);
  const done = await doInChunks({
    title: title ?? (jobs ? `${verb} ${countWords(jobs.length)}?` : `${verb} all jobs that match?`),
    text: given.text ?? text,
    verb,
    past,
    things: countWords,
    scope: jobs ? [] : chips(filter),
    fields: action === "postpone" && h("label", {}, "For", seconds),
    isDangerous,
    // A deletion of many must not need only one key press.
    typed: (count) => (isDangerous && count > FEW ? "delete" : ""),
    isAsked,
    ...source,
  });
  return done > 0;
}

/** @param {BulkAction} given @param {HTMLSelectElement} seconds */
function ofFilter(given, seconds) {
  const { api, action, filter = {} } = given;
  const body = { action, filter, ...(!Object.values(filter).some(Boolean) && { all: true }) };
  let until = /** @type {string | null} */ (null);
  return {
    async preview(/** @type {AbortSignal} */ signal) {
      const found = await api.post("/api/queue/jobs/bulk", { ...body, dryRun: true }, { signal });
      ({ until } = found);
      return { ...found, sample: found.sample.map(sampleRow) };
    },
    chunk: (/** @type {string | null} */ cursor) =>
      api.post("/api/queue/jobs/bulk", {
        ...body,
        cursor,
        until,
        ...(action === "postpone" && { seconds: Number(seconds.value) }),
      }),
    undo: ACTIONS[action].undo && (() => undoFilter(given, until)),
  };
}

/** @param {BulkAction} given @param {HTMLSelectElement} seconds */
function ofJobs(given, seconds) {
  const { api, action, jobs = [] } = given;
  const { undo } = ACTIONS[action];
  /** @type {Map<any, any>} the answer for each */ const answers = new Map();
  const until = jobs
    .map(({ createdAt }) => createdAt)
    .sort()
    .at(-1);
  const act = async (/** @type {any} */ job) => {
    if (answers.has(job)) return;
    const body = {
      action,
      filter: { q: job.assetId },
      until,
      ...(action === "postpone" && { seconds: Number(seconds.value) }),
    };
    answers.set(job, await api.post("/api/queue/jobs/bulk", body));
  };
  return {
    preview: async () => ({ count: jobs.length, isExact: true, sample: jobs.slice(0, 5).map(sampleRow) }),
    async chunk(/** @type {string | null} */ cursor) {
      const first = Number(cursor ?? 0);
      const some = jobs.slice(first, first + AT_ONCE);
      await Promise.all(some.map(act));
      const replies = some.map((job) => answers.get(job));
      const refused = replies.flatMap((each) => each.refused);
      const done = replies.filter((each) => each.done).length;
      const next = first + AT_ONCE;
      // A filter finds only jobs that the action can change.
      return {
        done,
        refused,
        skipped: some.length - done - refused.length,
        nextCursor: next < jobs.length ? String(next) : null,
      };
    },
    undo:
      undo && (() => runBulk({ api, action: undo, jobs: jobs.filter((job) => answers.get(job)?.done), isAsked: true })),
  };
}

/**
 * Undo: retry cancelled jobs, resume postponed ones, with the same filter. It may find more jobs than were changed just
 * now, so the person confirms it.
 * @param {BulkAction} given @param {string | null} until
 */
function undoFilter({ api, action, filter = {} }, until) {
  const same = { ...filter, to: filter.to && until && filter.to < until ? filter.to : (until ?? "") };
  if (action === "reanalyze")
    return runBulk({ api, action: "keep", filter: same, title: "Keep the results as they are?" });
  if (action === "postpone")
    return runBulk({
      api,
      action: "resume",
      filter: { ...same, state: "delayed" },
      title: "Resume the postponed jobs?",
    });
  const text = "All cancelled jobs that match are queued again, also those that were cancelled earlier.";
  return runBulk({
    api,
    action: "retry",
    filter: { ...same, state: "failed", failure: CANCELLED },
    title: "Run the cancelled jobs again?",
    text,
  });
}

/** @param {Record<string, string>} filter */
function chips(filter) {
  const set = Object.entries(filter).filter(([, value]) => value);
  if (!set.length) return [h("span", { class: "chip" }, h("b", {}, "all jobs"), " without any filter")];
  return set.map(([name, value]) => h("span", { class: "chip" }, h("b", {}, name), " ", value));
}

/** @param {any} job */
function sampleRow(job) {
  const { userId, createdAt, reason } = job;
  return h(
    "span",
    { class: "sample-row" },
    h("a", { href: hrefOf(job), target: "_blank" }, nameOf(job)),
    h("span", { class: "soft" }, ` ${userId} · `, time(createdAt)),
    reason && h("span", { class: "soft sample-reason" }, reason),
  );
}
