/** Charts of the last hour, day or week, from the service's own counters. */

import { fill, h } from "../dom.js";
import { Chart } from "../parts/chart.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { errorState } from "../parts/states.js";
import { duration, number } from "../parts/time.js";

const WINDOWS = [
  { value: "1h", label: "1 hour", everyMs: 15_000 },
  { value: "24h", label: "24 hours", everyMs: 60_000 },
  { value: "7d", label: "7 days", everyMs: 300_000 },
];

export class Charts {
  element;
  #api;
  #latest = new Latest();
  #window = WINDOWS[0];
  #charts = CHARTS.map((given) => new Chart(given));
  #grid;
  #note = h("div", { class: "card", hidden: true });
  #choices;
  #stop = () => {};
  /** The window of what is drawn. */ #drawn = "";

  /** @param {import("../router.js").Context} context */
  constructor({ api, setQuery }) {
    this.#api = api;
    this.#choices = WINDOWS.map(({ value, label }) =>
      h(
        "label",
        { class: "choice" },
        h("input", {
          type: "radio",
          name: "window",
          value,
          onchange: () => setQuery({ window: value === "1h" ? null : value }, { replace: true }),
        }),
        h("span", {}, label),
      ),
    );
    this.#grid = h(
      "div",
      { class: "charts" },
      this.#charts.map(({ element }) => element),
    );
    this.element = h(
      "section",
      { class: "stack", "aria-labelledby": "charts-title" },
      h(
        "div",
        { class: "row" },
        h("h2", { id: "charts-title" }, "The last"),
        h("fieldset", { class: "choices" }, h("legend", { class: "visually-hidden" }, "Time shown"), this.#choices),
      ),
      this.#grid,
      this.#note,
    );
  }

  /** @param {URLSearchParams} query */
  update(query) {
    this.#window = WINDOWS.find(({ value }) => value === query.get("window")) ?? WINDOWS[0];
    WINDOWS.forEach((each, at) => (this.#choices[at].querySelector("input").checked = each === this.#window));
    this.#stop();
    this.#stop = every(this.#window.everyMs, () => this.#load());
  }

  dispose() {
    this.#stop();
    this.#latest.dispose();
  }

  #load() {
    this.#grid.setAttribute("aria-busy", "true");
    const { value } = this.#window;
    return this.#latest.run((signal) => this.#api.get("/api/queue/charts", { query: { window: value }, signal }), {
      done: ({ points, stepSeconds }) => {
        this.#drawn = value;
        this.#grid.hidden = false;
        this.#note.hidden = true;
        this.#grid.setAttribute("aria-busy", "false");
        for (const chart of this.#charts) chart.show(points, stepSeconds);
      },
      failed: (error) => {
        this.#grid.setAttribute("aria-busy", "false");
        // The old chart stays, so that nothing below it moves.
        if (this.#drawn === value) return;
        this.#drawn = "";
        this.#grid.hidden = true;
        this.#note.hidden = false;
        fill(
          this.#note,
          errorState(error, () => this.#load()),
        );
      },
    });
  }
}

/** @type {ConstructorParameters<typeof Chart>[0][]} */
const CHARTS = [
  {
    title: "Finished",
    kind: "bars",
    unit: "count",
    series: [
      { name: "complete", look: "c1", value: ({ completed }) => completed },
      { name: "partial", look: "c2", value: ({ partial }) => partial },
    ],
    total: (points) => number(sum(points, ({ completed, partial }) => (completed ?? 0) + (partial ?? 0))),
  },
  {
    title: "Failures",
    kind: "bars",
    unit: "count",
    series: [
      { name: "failed", look: "c4", value: ({ failed }) => failed },
      { name: "retried", look: "c3", value: ({ retried }) => retried },
    ],
    total: (points) => number(sum(points, ({ failed }) => failed ?? 0)),
  },
  {
    title: "Wait in line",
    kind: "lines",
    unit: "duration",
    series: [
      { name: "50 % within", look: "c1", value: ({ waitP50Ms }) => waitP50Ms },
      { name: "95 % within", look: "c3", value: ({ waitP95Ms }) => waitP95Ms },
    ],
    total: (points) => newest(points, ({ waitP50Ms }) => waitP50Ms, duration),
  },
  {
    title: "Time in the AI",
    kind: "lines",
    unit: "duration",
    series: [
      { name: "50 % within", look: "c1", value: ({ runP50Ms }) => runP50Ms },
      { name: "95 % within", look: "c3", value: ({ runP95Ms }) => runP95Ms },
    ],
    total: (points) => newest(points, ({ runP50Ms }) => runP50Ms, duration),
  },
  {
    title: "Jobs in line",
    kind: "area",
    unit: "count",
    series: [{ name: "waiting", look: "c2", value: ({ waiting }) => waiting }],
    total: (points) => newest(points, ({ waiting }) => waiting, number),
  },
];

/** @param {any[]} points @param {(point: any) => number} value */
function sum(points, value) {
  return points.reduce((all, point) => all + value(point), 0);
}

/** The last known value. @param {any[]} points @param {(point: any) => number | null} value @param {(value: any) => string} shown */
function newest(points, value, shown) {
  return shown(points.map(value).findLast((each) => each != null) ?? null);
}
