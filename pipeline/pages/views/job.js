/** One job: photo, result, steps, deliveries, and the ids to search logs for. */

import { fill, h } from "../dom.js";
import { confirmed } from "../parts/dialog.js";
import {
  deliveriesSection,
  factsSection,
  logsSection,
  photoSection,
  rawSection,
  resultSection,
  stateSection,
  timelineSection,
} from "../parts/job-sections.js";
import { nameOf, stateBadge } from "../parts/job-words.js";
import { addKeys } from "../parts/keyboard.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { emptyState, errorState, skeleton } from "../parts/states.js";
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
  /** @type {{element: HTMLElement, show: (details: any) => void}[]} */ #sections = [];
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
    const side = [photoSection(), stateSection(), resultSection()];
    const main = [
      timelineSection(),
      deliveriesSection(mayChange ? api : null, () => this.load()),
      factsSection(),
      logsSection(),
      rawSection(),
    ];
    this.#sections = [...side, ...main];
    fill(
      this.#body,
      h(
        "div",
        { class: "job-side" },
        side.map(({ element }) => element),
      ),
      h(
        "div",
        { class: "job-main" },
        main.map(({ element }) => element),
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
