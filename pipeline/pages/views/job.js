/**
 * One job: photo, result, steps, deliveries, and the ids to search logs for.
 * Long because each section of the view is a function of its own here.
 */

import { fill, h } from "../dom.js";
import { copyable } from "../parts/copy.js";
import { confirmed } from "../parts/dialog.js";
import { deliveryBadge, responseWords, sendAgainButton } from "../parts/delivery-words.js";
import { nameOf, stateBadge } from "../parts/job-words.js";
import { addKeys } from "../parts/keyboard.js";
import { Latest } from "../parts/latest.js";
import { photo } from "../parts/photo.js";
import { every } from "../parts/refresh.js";
import { facts, provenanceRows, result } from "../parts/result.js";
import { emptyState, errorState, skeleton } from "../parts/states.js";
import { stateNow, timeline } from "../parts/timeline.js";
import { bytes, exact, number, time } from "../parts/time.js";
import { acting, toast } from "../parts/toast.js";

const REFRESH_MS = 3_000;
const OPEN = ["waiting", "delayed", "active"];
const SKIPPED_REFRESHES = 5; // refreshes that are skipped after its end

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view(context) {
  const shown = new JobView(context);
  return { element: shown.element, title: "Job", ready: shown.load(), dispose: shown.dispose };
}

class JobView {
  element;
  #context;
  #heading = h("h1", {}, "Job");
  #badge = h("span", { role: "status" });
  #actions = h("div", { class: "row job-actions" });
  #body = h("div", { class: "job" });
  /** @type {Section[]} */ #sections = [];
  #latest = new Latest();
  /** @type {any} */ #details = null;
  #refreshesToSkip = 0;
  #hasFailed = false;
  /** The id in the address; it may be that of an earlier job of the photo. */ #id;
  #ends;

  /** @param {import("../router.js").Context} context */
  constructor(context) {
    this.#context = context;
    this.#id = context.params.id;
    fill(this.#body, h("div", { class: "card" }, skeleton(5)), h("div", { class: "card" }, skeleton(8)));
    const head = h(
      "div",
      { class: "view-head" },
      h("div", { class: "row job-title" }, this.#heading, this.#badge),
      this.#actions,
    );
    this.element = h(
      "div",
      { class: "view" },
      h("p", { class: "crumb small" }, h("a", { href: "/console/jobs" }, "Jobs")),
      head,
      this.#body,
    );
    this.#ends = [
      every(REFRESH_MS, () => this.#refresh()),
      addKeys([
        {
          keys: "u",
          does: "Back to the list",
          run: () => (history.length > 1 ? history.back() : context.navigate("/console/jobs")),
        },
      ]),
    ];
  }

  dispose = () => {
    for (const end of this.#ends) end();
    this.#latest.dispose();
  };

  load() {
    return this.#latest.run((signal) => this.#ask(this.#context.api, this.#id, signal), {
      done: (details) => this.#show(details),
      failed: (error) => this.#fail(error),
    });
  }

  /** @param {import("../api.js").Api} api @param {string} id @param {AbortSignal} signal */
  async #ask(api, id, signal) {
    const details = await api.get(`/api/queue/jobs/${encodeURIComponent(id)}`, { signal });
    // Deliveries are stored elsewhere: the rest is also shown when they cannot be read.
    const deliveries = await api
      .get("/api/queue/deliveries", { query: { asset: details.asset.id, limit: 100 }, signal })
      .then(
        ({ items }) => items,
        () => details.deliveries,
      );
    return { ...details, deliveries };
  }

  #refresh() {
    if (!this.#details) return this.#hasFailed && this.load();
    if (this.#details.job.finishedAt && (this.#refreshesToSkip -= 1) > 0) return;
    this.#refreshesToSkip = SKIPPED_REFRESHES;
    return this.load();
  }

  /** @param {any} details */
  #show(details) {
    const isFirst = !this.#details;
    this.#details = details;
    const { job, asset } = details;
    this.#id = asset.id;
    this.#hasFailed = false;
    this.#context.setTitle(nameOf(job));
    if (this.#heading.textContent !== nameOf(job)) this.#heading.textContent = nameOf(job);
    const badge = stateBadge(job);
    if (this.#badge.textContent !== badge.textContent) fill(this.#badge, badge);
    if (isFirst) this.#build();
    for (const section of this.#sections) section.show(details);
    this.#showActions(job, asset);
  }

  /** @param {any} error */
  #fail(error) {
    // The view stays while the service does not answer; a deleted job is reported.
    const isNone = [400, 404].includes(error.status);
    if (this.#details && !isNone) return;
    this.#details = null;
    this.#hasFailed = !isNone;
    delete this.#actions.dataset.which;
    fill(this.#actions);
    fill(this.#badge);
    const content = isNone
      ? emptyState(
          "There is no such job",
          error.status === 404 ? "Its photo may have been deleted." : "This is not the id of a job.",
          h("a", { class: "button", href: "/console/jobs" }, "To the jobs"),
        )
      : errorState(error, () => this.load());
    fill(this.#body, h("div", { class: "card alone" }, content));
  }

  #build() {
    const { api, mayChange } = this.#context;
    const again = () => this.load();
    const picture = new Section(
      "",
      ({ asset }) => [asset.images, asset.category],
      ({ asset }) => photo(asset),
    );
    const now = new Section(
      "State",
      ({ job, asset }) => [job, asset.progress],
      (details) => [stateNow(details), sameKind(details.job)],
    );
    const found = new Section("Result", ({ asset, history }) => [asset.aiMetadata, asset.corrections, history], result);
    const steps = new Section("What happened", ({ job, asset, causes }) => [job, asset.attempts, causes], timeline);
    const sent = new Section(
      "Deliveries",
      ({ deliveries }) => deliveries,
      ({ deliveries }) => deliveryList(deliveries, mayChange ? api : null, again),
    );
    const about = new Section(
      "Facts",
      ({ job, asset }) => [job.jobId, asset.images, asset.provenance, asset.updatedAt],
      aboutRows,
    );
    const logs = new Section(
      "In the logs",
      ({ searchFor, requestId, traceId }) => [searchFor, requestId, traceId],
      logWords,
    );
    const raw = new Section("", (details) => details, rawJson);
    this.#sections = [picture, now, found, steps, sent, about, logs, raw];
    fill(
      this.#body,
      h(
        "div",
        { class: "job-side" },
        [picture, now, found].map(({ element }) => element),
      ),
      h(
        "div",
        { class: "job-main" },
        [steps, sent, about, logs, raw].map(({ element }) => element),
      ),
    );
  }

  // acting

  /** @param {any} job @param {any} asset */
  #showActions({ state, status }, { id }) {
    if (!this.#context.mayChange) return;
    const which = `${state} ${status}`;
    if (this.#actions.dataset.which === which) return;
    this.#actions.dataset.which = which;
    const canRetry = state === "failed" || status === "partial";
    const button = (/** @type {string} */ word, /** @type {() => Promise<unknown>} */ run, look = "") =>
      h(
        "button",
        { type: "button", class: look, onclick: (/** @type {any} */ { currentTarget }) => acting(currentTarget, run) },
        word,
      );
    fill(
      this.#actions,
      canRetry ? button("Retry", () => this.#post("retry", "The job is queued again."), "primary") : null,
      OPEN.includes(state) ? button("Cancel", () => this.#cancel()) : null,
      button("Delete …", () => this.#delete(id), "danger"),
    );
  }

  /** @param {"retry" | "cancel"} action @param {string} text @param {() => unknown} [undo] */
  async #post(action, text, undo) {
    const { api, live } = this.#context;
    await api.post(`/api/queue/jobs/${this.#id}/${action}`);
    toast(text, { kind: "good", undo });
    live.refresh();
    await this.load();
  }

  #cancel() {
    return this.#post("cancel", "The job is cancelled.", () =>
      acting(null, () => this.#post("retry", "The job is queued again.")),
    );
  }

  /** @param {string} id */
  async #delete(id) {
    const text = "The photo, its images and its result are deleted. This cannot be undone.";
    if (!(await confirmed({ title: "Delete this photo?", text, confirm: "Delete", isDangerous: true }))) return;
    const { api, navigate, live } = this.#context;
    await api.delete(`/api/assets/${id}`);
    toast("The photo is deleted.", { kind: "good" });
    live.refresh();
    navigate("/console/jobs", { replace: true });
  }
}

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
function aboutRows({ job, asset }) {
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
