/** Positions of numbers on a chart, and the labels of its axis. Pure. */

const COUNT_STEPS = [1, 2, 5];
const DURATION_STEPS_MS = [
  ...[1, 2, 5, 10, 20, 50, 100, 200, 500],
  ...[1, 2, 5, 10, 15, 30].map((seconds) => seconds * 1000),
  ...[1, 2, 5, 10, 15, 30].map((minutes) => minutes * 60_000),
  ...[1, 2, 4, 8, 12, 24].map((hours) => hours * 3_600_000),
];
const MOST_STEPS = 4;

/**
 * The labels of the axis, from 0 to a number not below the highest.
 * @param {number} highest
 * @param {boolean} isDuration in milliseconds
 * @returns {number[]}
 */
export function ticks(highest, isDuration) {
  const step = (isDuration ? durationStep : countStep)(highest / MOST_STEPS);
  const count = Math.max(2, Math.ceil(highest / step));
  return Array.from({ length: count + 1 }, (_, at) => at * step);
}

/** @param {number} least */
function countStep(least) {
  const power = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(least, 1))));
  return (COUNT_STEPS.find((step) => step * power >= least) ?? 10) * power;
}

/** @param {number} least */
function durationStep(least) {
  const day = 86_400_000;
  return DURATION_STEPS_MS.find((step) => step >= least) ?? Math.ceil(least / day) * day;
}

/**
 * The path of a line through the values, with a gap where there is none.
 * @param {(number | null)[]} values
 * @param {number} top of the axis
 * @returns {string} in a box of one unit a value, 100 high
 */
export function linePath(values, top) {
  let path = "";
  values.forEach((value, at) => {
    if (value == null) return;
    path += `${values[at - 1] == null ? "M" : "L"}${at + 0.5},${height(value, top)}`;
  });
  return path;
}

/** Values without a neighbour, which no line would show. @param {(number | null)[]} values @param {number} top */
export function dotPath(values, top) {
  const alone = runs(values).filter(([from, to]) => to - from === 1);
  return alone.map(([at]) => `M${at + 0.5},${height(/** @type {number} */ (values[at]), top)}h0`).join("");
}

/** The same path, filled down to the axis. @param {(number | null)[]} values @param {number} top */
export function areaPath(values, top) {
  return runs(values)
    .map(([from, to]) => {
      const line = values
        .slice(from, to)
        .map((value, at) => `L${from + at + 0.5},${height(/** @type {number} */ (value), top)}`)
        .join("");
      return `M${from + 0.5},100${line}V100Z`;
    })
    .join("");
}

/**
 * The path of bars that are stacked on others.
 * @param {number[]} values @param {number[]} below @param {number} top
 */
export function barPath(values, below, top) {
  return values
    .map((value, at) =>
      value ? `M${at + 0.12},${height(below[at], top)}h.76V${height(below[at] + value, top)}h-.76Z` : "",
    )
    .join("");
}

/** Begin and end of each run of values without a gap. @param {(number | null)[]} values @returns {[number, number][]} */
function runs(values) {
  /** @type {[number, number][]} */
  const found = [];
  values.forEach((value, at) => {
    if (value == null) return;
    if (at && values[at - 1] != null) found[found.length - 1][1] = at + 1;
    else found.push([at, at + 1]);
  });
  return found;
}

/** @param {number} value @param {number} top */
function height(value, top) {
  return Math.round((100 - (100 * value) / top) * 100) / 100;
}
