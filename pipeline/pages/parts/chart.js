/**
 * Charts over time as SVG: lines or stacked bars. The pointer or the arrow keys show the numbers of one point in time;
 * the same numbers are in a table.
 *
 * @typedef {{name: string, look: string, value: (point: any) => number | null}} Series look: a class of console.css
 */

import { fill, h } from "../dom.js";
import { areaPath, barPath, dotPath, linePath, ticks } from "./scale.js";
import { compact, duration, multiple, number } from "./time.js";

const SVG = "http://www.w3.org/2000/svg";
const TIP_GAP = 8; // pixels
const LABEL_EVERY_S = { 60: 900, 600: 6 * 3600, 3600: 86_400 };
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { weekday: "short" });
const WHOLE = new Intl.DateTimeFormat("en-GB", {
  weekday: "short",
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});

export class Chart {
  element;
  #given;
  #total = h("span", { class: "chart-total number" });
  #axis = h("div", { class: "chart-axis number", "aria-hidden": "true" });
  #plot;
  #svg = svg("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
  #cursor = h("div", { class: "chart-cursor", hidden: true });
  #tip = h("div", { class: "chart-tip", hidden: true, "aria-hidden": "true" });
  #hours = h("div", { class: "chart-hours number", "aria-hidden": "true" });
  #table;
  /** @type {any[]} */ #points = [];
  #stepSeconds = 60;
  #at = -1;

  /**
   * @param {object} given
   * @param {string} given.title
   * @param {"lines" | "area" | "bars"} given.kind
   * @param {"count" | "duration"} given.unit
   * @param {Series[]} given.series
   * @param {(points: any[]) => string} given.total the summary number
   */
  constructor(given) {
    this.#given = given;
    this.#plot = h(
      "div",
      {
        class: "chart-plot",
        tabindex: "0",
        role: "slider",
        "aria-label": `${given.title}, over time`,
        "aria-valuemin": "0",
        onpointermove: this.#point,
        onpointerdown: this.#point,
        onpointerleave: this.#leave,
        onfocus: this.#enter,
        onblur: this.#leave,
        onkeydown: this.#key,
      },
      this.#cursor,
      this.#tip,
    );
    this.#plot.prepend(this.#svg);
    this.#table = h(
      "details",
      { class: "chart-table", ontoggle: () => this.#tabulate() },
      h("summary", {}, "As a table"),
      h("div", { class: "chart-scroll", tabindex: "0", role: "group", "aria-label": `${given.title} as a table` }),
    );
    const legend = given.series.map(({ name, look }) => h("li", {}, h("span", { class: `swatch ${look}` }), name));
    this.element = h(
      "figure",
      { class: `chart card ${given.kind}` },
      h("figcaption", {}, h("h3", {}, given.title), this.#total, h("ul", { class: "legend" }, legend)),
      h("div", { class: "chart-frame" }, this.#axis, this.#plot, this.#hours),
      this.#table,
    );
    this.show([], 60);
  }

  /** @param {any[]} points oldest first @param {number} stepSeconds */
  show(points, stepSeconds) {
    this.#points = points;
    this.#stepSeconds = stepSeconds;
    this.#total.textContent = points.length ? this.#given.total(points) : " ";
    const { kind, unit, series } = this.#given;
    const values = series.map(({ value }) => points.map((point) => value(point) ?? null));
    const highest =
      kind === "bars"
        ? Math.max(0, ...points.map((_, at) => sum(values.map((each) => each[at]))))
        : Math.max(0, ...values.flat().map((value) => value ?? 0));
    const marks = ticks(highest, unit === "duration");
    const top = marks[marks.length - 1];
    fill(
      this.#axis,
      [...marks].reverse().map((mark) => h("span", {}, this.#short(mark, marks[1]))),
    );
    this.#svg.setAttribute("viewBox", `0 0 ${Math.max(1, points.length)} 100`);
    const grid = marks.map((mark) =>
      svg("path", { class: "grid", d: `M0,${100 - (100 * mark) / top}H${Math.max(1, points.length)}` }),
    );
    fill(this.#svg, grid, this.#shapes(values, top));
    this.#label();
    this.#plot.setAttribute("aria-valuemax", String(Math.max(0, points.length - 1)));
    if (this.#at >= points.length || this.#tip.hidden) this.#at = points.length - 1;
    this.#showPoint(!this.#tip.hidden);
    this.#tabulate();
  }

  /** @param {(number | null)[][]} values of each series @param {number} top */
  #shapes(values, top) {
    const { kind, series } = this.#given;
    if (kind !== "bars") {
      const areas =
        kind === "area"
          ? values.map((each, at) => svg("path", { class: `area ${series[at].look}`, d: areaPath(each, top) }))
          : [];
      const lines = values.map((each, at) => svg("path", { class: `line ${series[at].look}`, d: linePath(each, top) }));
      return [
        ...areas,
        ...lines,
        ...values.map((each, at) => svg("path", { class: `line dots ${series[at].look}`, d: dotPath(each, top) })),
      ];
    }
    const below = this.#points.map(() => 0);
    return values.map((each, at) => {
      const whole = each.map((value) => value ?? 0);
      const path = svg("path", { class: `bar ${series[at].look}`, d: barPath(whole, below, top) });
      whole.forEach((value, index) => (below[index] += value));
      return path;
    });
  }

  /** The labels of the time axis, at whole hours. */
  #label() {
    const everyS = /** @type {any} */ (LABEL_EVERY_S)[this.#stepSeconds] ?? this.#stepSeconds * 12;
    const isDays = everyS >= 86_400;
    const labels = this.#points.flatMap(({ at }, index) => {
      const date = new Date(at);
      const local = date.getTime() / 1000 - date.getTimezoneOffset() * 60;
      if (local % everyS >= this.#stepSeconds) return [];
      const share = index / this.#points.length;
      if (share > 0.94 || share < 0.02) return [];
      const label = h("span", {}, (isDays ? DAY : CLOCK).format(date));
      label.style.left = `${100 * share}%`;
      return [label];
    });
    fill(this.#hours, labels);
  }

  // one instant

  /** @param {PointerEvent} event */
  #point = (event) => {
    const { left, width } = this.#plot.getBoundingClientRect();
    this.#at = Math.max(
      0,
      Math.min(this.#points.length - 1, Math.floor((this.#points.length * (event.clientX - left)) / width)),
    );
    this.#showPoint(true);
  };

  #enter = () => this.#showPoint(this.#plot.matches(":focus-visible"));

  #leave = () => this.#showPoint(this.#plot.matches(":focus-visible"));

  /** @param {KeyboardEvent} event */
  #key = (event) => {
    const last = this.#points.length - 1;
    const to = {
      ArrowLeft: this.#at - 1,
      ArrowRight: this.#at + 1,
      ArrowDown: this.#at - 1,
      ArrowUp: this.#at + 1,
      Home: 0,
      End: last,
      PageUp: this.#at - 10,
      PageDown: this.#at + 10,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#at = Math.max(0, Math.min(last, to));
    this.#showPoint(true);
  };

  /** @param {boolean} isShown */
  #showPoint(isShown) {
    const point = this.#points[this.#at];
    this.#cursor.hidden = this.#tip.hidden = !(isShown && point);
    const { series } = this.#given;
    const words = point
      ? series.map((each) => `${each.name} ${this.#long(each.value(point))}`).join(", ")
      : "nothing yet";
    this.#plot.setAttribute("aria-valuenow", String(Math.max(0, this.#at)));
    this.#plot.setAttribute("aria-valuetext", point ? `${WHOLE.format(new Date(point.at))}: ${words}` : words);
    if (this.#tip.hidden) return;
    const lines = series.map((each) =>
      h(
        "li",
        {},
        h("span", { class: `swatch ${each.look}` }),
        each.name,
        h("b", { class: "number" }, this.#long(each.value(point))),
      ),
    );
    fill(this.#tip, h("span", { class: "soft small" }, WHOLE.format(new Date(point.at))), h("ul", {}, lines));
    this.#placeTip();
  }

  /** Beside the instant, within the plot. */
  #placeTip() {
    const width = this.#plot.clientWidth;
    const x = (width * (this.#at + 0.5)) / this.#points.length;
    const tip = this.#tip.offsetWidth;
    this.#cursor.style.left = `${x}px`;
    this.#tip.style.left = `${x < width / 2 ? Math.min(x + TIP_GAP, width - tip) : Math.max(x - TIP_GAP - tip, 0)}px`;
  }

  /** The same numbers, newest first, once the table is opened. */
  #tabulate() {
    const frame = this.#table.lastElementChild;
    if (!this.#table.open) return fill(frame);
    const { title, series } = this.#given;
    const rows = [...this.#points].reverse().map((point) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, WHOLE.format(new Date(point.at))),
        series.map((each) => h("td", { class: "number" }, this.#long(each.value(point)))),
      ),
    );
    fill(
      frame,
      h(
        "table",
        {},
        h("caption", { class: "visually-hidden" }, title),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "Time"),
            series.map(({ name }) => h("th", { scope: "col" }, name)),
          ),
        ),
        h("tbody", {}, rows),
      ),
    );
  }

  /** @param {number} value @param {number} step between those beside the axis */
  #short(value, step) {
    if (this.#given.unit === "count") return compact(value);
    return value ? multiple(value, step) : "0";
  }

  /** @param {number | null} value */
  #long(value) {
    return this.#given.unit === "count" ? number(value) : duration(value);
  }
}

/** @param {string} name @param {Record<string, string>} attributes @returns {any} */
function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** @param {(number | null)[]} values */
function sum(values) {
  return values.reduce((/** @type {number} */ all, value) => all + (value ?? 0), 0);
}
