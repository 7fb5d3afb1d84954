/** The steps of a job: upload, each attempt with the provider's answer, the waits between, and the present state. */

import { h } from "../dom.js";
import { stateDetails } from "./job-words.js";
import { duration, exact, time } from "./time.js";

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** @param {any} details of GET /api/queue/jobs/{jobId} @returns {HTMLElement} an ordered list */
export function timeline({ job, asset, causes }) {
  const { attempts, createdAt } = asset;
  const steps = [step("", "Sent", createdAt)];
  let before = createdAt;
  let number = 0;
  if (attempts[0]?.attempt > 1) steps.push(gap("Earlier attempts are not shown: only the last ten are stored."));
  for (const [i, each] of attempts.entries()) {
    if (each.attempt <= number) steps.push(gap("Run again"));
    steps.push(gap(waited(before, each.startedAt)), attemptStep(each, causes[i]));
    [before, number] = [each.endedAt, each.attempt];
  }
  return h("ol", { class: "timeline" }, steps, lastSteps(job, before));
}

/** @param {any} attempt @param {string | null} cause what was behind the reason */
function attemptStep({ attempt, startedAt, endedAt, provider, model, outcome, reason }, cause) {
  const isGood = outcome === "completed";
  const took = duration(Date.parse(endedAt) - Date.parse(startedAt));
  const asked = [provider, model].filter(Boolean).join(" · ");
  return step(
    isGood ? "good" : "bad",
    h(
      "span",
      {},
      `Attempt ${attempt} `,
      h("span", { class: `badge ${isGood ? "good" : "bad"}` }, isGood ? "Answered" : "Failed"),
    ),
    startedAt,
    h(
      "p",
      { class: "small soft" },
      asked ? h("span", {}, "called ", h("b", {}, asked)) : "no AI provider was called",
      " · took ",
      h("span", { class: "number" }, took),
    ),
    reason && h("p", { class: "timeline-reason" }, reason, cause && h("code", { class: "timeline-cause" }, cause)),
  );
}

/** The present state. @param {any} job @param {string} before */
function lastSteps(job, before) {
  const { state, finishedAt, status, reason } = job;
  if (finishedAt && state === "completed")
    return [
      step(
        status === "partial" ? "warn" : "good",
        status === "partial" ? "Completed in part" : "Completed",
        finishedAt,
        total(job),
      ),
    ];
  if (finishedAt)
    return [
      reason !== "Cancelled" ? null : gap(waited(before, finishedAt)),
      step("bad", reason === "Cancelled" ? "Cancelled" : "Given up", finishedAt, total(job)),
    ];
  return [
    h(
      "li",
      { class: `step now ${state === "active" ? "busy" : ""}`, "aria-current": "step" },
      h(
        "p",
        { class: "step-title" },
        { active: "Running now", waiting: "Waiting", delayed: "Waiting for the next try" }[
          /** @type {string} */ (state)
        ] ?? state,
      ),
      h("p", { class: "small soft" }, stateDetails(job)),
    ),
  ];
}

/** @param {any} job */
function total({ createdAt, finishedAt }) {
  return h(
    "p",
    { class: "small soft number" },
    `${duration(Date.parse(finishedAt) - Date.parse(createdAt))} after it was sent`,
  );
}

/** @param {string} kind @param {any} title @param {string} at @param {...any} rest */
function step(kind, title, at, ...rest) {
  const clock = h(
    "time",
    { class: "step-clock number", datetime: at, title: `${exact(at)}\n${at}` },
    CLOCK.format(new Date(at)),
  );
  return h("li", { class: `step ${kind}` }, h("p", { class: "step-title" }, title, clock), rest);
}

/** @param {any} words */
function gap(words) {
  return h("li", { class: "gap small soft number" }, words);
}

/** @param {string} from @param {string} to */
function waited(from, to) {
  return `waited ${duration(Math.max(0, Date.parse(to) - Date.parse(from)))}`;
}

/** The details of a state, for its card. @param {any} details @returns {any[]} */
export function stateNow({ job, asset }) {
  const { progress } = asset;
  const lines = [h("p", { class: "state-words" }, stateDetails(job))];
  if (progress?.etaSeconds != null)
    lines.push(
      h(
        "p",
        { class: "soft" },
        `At the speed of the last minute it ends in ${duration(progress.etaSeconds * 1000, true)}.`,
      ),
    );
  if (progress?.share != null)
    lines.push(h("progress", { value: String(progress.share), max: "1", "aria-label": "How much is done" }));
  if (job.finishedAt) lines.push(h("p", { class: "soft" }, "Ended ", time(job.finishedAt), "."));
  return lines;
}
