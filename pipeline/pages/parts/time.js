/** Texts of times and durations, which are updated with the clock; sizes and numbers. */

import { h } from "../dom.js";

const UNITS = [
  { name: "d", ms: 86_400_000 },
  { name: "h", ms: 3_600_000 },
  { name: "min", ms: 60_000 },
  { name: "s", ms: 1000 },
];
const NUMBER = new Intl.NumberFormat("en");
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const DATE = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
let aheadMs = 0; // the service's clock minus ours, which may be wrong by hours

/** @param {string | undefined} instant of the server, just now */
export function setServerTime(instant) {
  const ms = Date.parse(instant ?? "");
  if (!Number.isNaN(ms)) aheadMs = ms - Date.now();
}

/** The service's present time. */
function serverNow() {
  return Date.now() + aheadMs;
}

/**
 * A <time> that is updated with the clock; its title has the exact time.
 * @param {string | number | null | undefined} instant of the server's clock
 * @param {"ago" | "until" | "for"} [way] "3 min ago", "in 12 s", "3 min"
 * @returns {HTMLElement} a dash when there is none
 */
export function time(instant, way = "ago") {
  const ms = typeof instant === "number" ? instant : Date.parse(instant ?? "");
  if (Number.isNaN(ms)) return h("span", { class: "soft" }, "–");
  const date = new Date(ms);
  const element = h("time", { datetime: date.toISOString(), title: exact(ms), "data-way": way });
  element.textContent = words(ms, way);
  return element;
}

/** A countdown to so many seconds from now. @param {number} seconds */
export function countdown(seconds) {
  return time(serverNow() + seconds * 1000, "until");
}

/** The exact time. @param {number | string} instant */
export function exact(instant) {
  return DATE.format(new Date(instant));
}

/** Like "3 min", "2 h 5 min", "340 ms". @param {number | null | undefined} ms @param {boolean} [isRough] one unit only */
export function duration(ms, isRough = false) {
  if (ms == null) return "–";
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 10_000 && !isRough) return `${(ms / 1000).toFixed(1)} s`;
  const at = UNITS.findIndex((unit) => ms >= unit.ms);
  const whole = Math.floor(ms / UNITS[at].ms);
  const next = UNITS[at + 1];
  const rest = next && !isRough ? Math.floor((ms % UNITS[at].ms) / next.ms) : 0;
  return `${whole} ${UNITS[at].name}${rest ? ` ${rest} ${next.name}` : ""}`;
}

/** A duration in the unit of the step that it is a multiple of, like "90 s" or "1.5 s". @param {number} ms @param {number} stepMs */
export function multiple(ms, stepMs) {
  const unit = UNITS.find((each) => stepMs >= each.ms);
  if (unit) return `${ms / unit.ms} ${unit.name}`;
  return ms < 1000 ? `${ms} ms` : `${ms / 1000} s`;
}

/** @param {number | null | undefined} value @returns {string} a dash for none */
export function number(value) {
  return value == null ? "–" : NUMBER.format(value);
}

/** The number, shortened when it is too large to fit. @param {number | null | undefined} value */
export function large(value) {
  return value != null && value >= 1_000_000 ? COMPACT.format(value) : number(value);
}

/** Like "1.2K". @param {number | null | undefined} value */
export function compact(value) {
  return value == null ? "–" : COMPACT.format(value);
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (value == null) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  const scaled = value / 1024 ** power;
  return `${scaled < 10 && power ? scaled.toFixed(1) : Math.round(scaled)} ${units[power]}`;
}

/** @param {number} ms @param {string} way */
function words(ms, way) {
  const leftMs = way === "until" ? ms - serverNow() : serverNow() - ms;
  if (way === "until") return leftMs <= 0 ? "now" : `in ${span(leftMs)}`;
  if (way === "for") return span(Math.max(0, leftMs));
  return leftMs < 1000 ? "just now" : `${span(leftMs)} ago`;
}

/** In whole seconds below a minute, otherwise in one unit, so that the text keeps its width. @param {number} ms */
function span(ms) {
  return duration(Math.max(1000, Math.ceil(ms / 1000) * 1000), true);
}

setInterval(() => {
  if (document.visibilityState === "hidden") return;
  for (const element of /** @type {NodeListOf<HTMLTimeElement>} */ (document.querySelectorAll("time[data-way]"))) {
    const text = words(Date.parse(element.dateTime), element.dataset.way ?? "ago");
    if (element.textContent !== text) element.textContent = text;
  }
}, 1000);
