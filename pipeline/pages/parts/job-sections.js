/** The sections of the page of one job. Each takes its part of GET /api/queue/jobs/{jobId}. */

import { fill, h } from "../dom.js";
import { copyable } from "./copy.js";
import { deliveryBadge, responseWords, sendAgainButton } from "./delivery-words.js";
import { photo } from "./photo.js";
import { facts, provenanceRows, result } from "./result.js";
import { bytes, exact, number, time } from "./time.js";
import { stateNow, timeline } from "./timeline.js";

/** A part of the page that is built again only when its data have changed. */
class Section {
  element;
  #body = h("div", { class: "stack" });
  #pick;
  #build;
  #shown = "";

  /** @param {string} title @param {(details: any) => any} pick its data @param {(details: any) => any} build */
  constructor(title, pick, build) {
    this.#pick = pick;
    this.#build = build;
    this.element = h(
      "section",
      { class: "card job-section", ...(title && { "aria-label": title }) },
      title && h("h2", {}, title),
      this.#body,
    );
  }

  /** @param {any} details */
  show(details) {
    const text = JSON.stringify(this.#pick(details));
    if (text === this.#shown) return;
    this.#shown = text;
    const isOpen = this.#body.querySelector("details")?.open;
    fill(this.#body, this.#build(details));
    const folded = this.#body.querySelector("details");
    if (folded && isOpen) folded.open = true;
  }
}

export function photoSection() {
  return new Section(
    "",
    ({ asset }) => [asset.images, asset.category],
    ({ asset }) => photo(asset),
  );
}

export function stateSection() {
  return new Section(
    "State",
    ({ job, asset }) => [job, asset.progress],
    (details) => [stateNow(details), sameKind(details.job)],
  );
}

export function resultSection() {
  return new Section("Result", ({ asset, history }) => [asset.aiMetadata, asset.corrections, history], result);
}

export function timelineSection() {
  return new Section("What happened", ({ job, asset, causes }) => [job, asset.attempts, causes], timeline);
}

/** @param {import("../api.js").Api | null} api null: without buttons @param {() => unknown} reload after one was sent */
export function deliveriesSection(api, reload) {
  return new Section(
    "Deliveries",
    ({ deliveries }) => deliveries,
    ({ deliveries }) => deliveryList(deliveries, api, reload),
  );
}

export function factsSection() {
  return new Section(
    "Facts",
    ({ job, asset }) => [job.jobId, asset.images, asset.provenance, asset.updatedAt],
    factRows,
  );
}

export function logsSection() {
  return new Section("In the logs", ({ searchFor, requestId, traceId }) => [searchFor, requestId, traceId], logWords);
}

export function rawSection() {
  return new Section("", (details) => details, rawJson);
}

/** @param {any} job */
function sameKind({ failure }) {
  return (
    failure &&
    h(
      "p",
      {},
      h(
        "a",
        { href: `/console/jobs?${new URLSearchParams({ state: "failed", failure })}` },
        "All jobs that failed for this reason",
      ),
    )
  );
}

/** @param {any[]} deliveries @param {import("../api.js").Api | null} api @param {() => unknown} then */
function deliveryList(deliveries, api, then) {
  if (!deliveries.length)
    return h("p", { class: "soft" }, "There are no deliveries to durable notifiers in the last seven days.");
  return h(
    "ul",
    { class: "deliveries" },
    deliveries.map((each) =>
      h(
        "li",
        {},
        h(
          "div",
          { class: "delivery-words" },
          h(
            "p",
            { class: "row" },
            h("b", {}, each.notifier),
            deliveryBadge(each),
            h(
              "span",
              { class: "soft small number" },
              each.attempts === 1 ? "1 attempt" : `${number(each.attempts)} attempts`,
            ),
          ),
          h("p", { class: "small" }, responseWords(each)),
          h(
            "p",
            { class: "soft small" },
            "queued ",
            time(each.at),
            each.finishedAt && [" · ended ", time(each.finishedAt)],
          ),
        ),
        api && sendAgainButton(api, each, then),
      ),
    ),
  );
}

/** @param {any} details */
function factRows({ job, asset }) {
  const { original } = asset.images;
  return facts([
    ["User", h("a", { href: `/console/users/${encodeURIComponent(asset.userId)}` }, asset.userId)],
    ["Category", asset.category],
    ["Sent", exact(asset.createdAt)],
    ["Last change", exact(asset.updatedAt)],
    [
      "Original",
      h(
        "span",
        { class: "number" },
        `${number(original.width)} × ${number(original.height)} px · ${bytes(original.bytes)} · ${original.contentType}`,
      ),
    ],
    ...provenanceRows(asset.provenance),
    ["Photo id", copyable(asset.id)],
    ["Job id", copyable(job.jobId)],
  ]);
}

/** @param {any} details */
function logWords({ searchFor, requestId, traceId }) {
  const others = [
    ["Request id", requestId],
    ["Trace id", traceId],
  ].filter(([, id]) => id && !searchFor.some((/** @type {string} */ each) => each.endsWith(id)));
  return [
    h("p", { class: "soft small" }, "Log lines about this job contain:"),
    h(
      "ul",
      { class: "plain" },
      searchFor.map((/** @type {string} */ each) => h("li", {}, copyable(each))),
    ),
    others.length ? facts(others.map(([name, id]) => [name, copyable(id)])) : null,
  ];
}

/** @param {any} details */
function rawJson(details) {
  return h(
    "details",
    {},
    h("summary", {}, "As JSON"),
    h("pre", { class: "raw", tabindex: "0", "aria-label": "JSON of the job" }, JSON.stringify(details, null, 2)),
  );
}
