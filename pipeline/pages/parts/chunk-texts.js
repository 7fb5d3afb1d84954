/**
 * The contents of the dialog for many items, before and after the work.
 *
 * @typedef {import("./chunks.js").Work} Work
 *
 * @typedef {object} Total
 * @property {number} done
 * @property {number} skipped
 * @property {number} refused
 * @property {boolean} isLost an answer was lost: more may have been done
 * @property {boolean} isCut not all refusals are listed
 * @property {Map<string, string[]>} reasons ids of refused items by reason
 */

import { wordsOf } from "../api.js";
import { h } from "../dom.js";
import { number } from "./time.js";

const REASONS_SHOWN = 8;

/** What will happen, and the filter. @param {Work} work */
export function descriptionOf({ text, scope = [] }) {
  return [h("p", {}, text), scope.length ? h("p", { class: "chips" }, scope) : null];
}

/** The count and a sample. @param {import("./chunks.js").Preview} preview @param {Work["things"]} things */
export function previewOf({ count, isExact, sample }, things) {
  return h(
    "div",
    { class: "bulk-count" },
    h("p", { class: "dialog-count number" }, things(count, isExact)),
    h(
      "ul",
      { class: "sample", "aria-label": "Some of them" },
      sample.map((each) => h("li", {}, each)),
    ),
    h(
      "p",
      { class: "soft small" },
      count > sample.length
        ? `… and ${isExact ? number(count - sample.length) : "many"} more like these.`
        : "These are all.",
    ),
  );
}

/** A field for a word that must be typed. @param {string} word @param {(isRight: boolean) => void} onInput @returns {HTMLInputElement} */
export function typedField(word, onInput) {
  const field = h("input", {
    name: "typed",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    oninput: () => onInput(field.value.trim() === word),
  });
  return field;
}

/** Like "3 jobs cancelled.". @param {Work} work @param {Total} total */
export function doneWords({ things, past }, { done, isLost }) {
  return `${capital(things(done, !(isLost && done)))} ${past}.`;
}

/** @param {Work} work @param {Total} total @param {{problem: any, isStopped: boolean}} end */
export function resultOf(work, total, { problem, isStopped }) {
  const { skipped, isCut, reasons } = total;
  return [
    problem && h("p", { class: "banner bad", role: "alert" }, wordsOf(problem)),
    h("p", { class: "bulk-result number", role: "status" }, doneWords(work, total)),
    isStopped && !problem ? h("p", {}, "The others were not changed.") : null,
    skipped
      ? h("p", { class: "soft" }, `${capital(work.things(skipped))} not changed: the action was no longer possible.`)
      : null,
    reasons.size
      ? h(
          "div",
          {},
          h("p", {}, isCut ? "Not done, among others:" : "Not done:"),
          h("ul", { class: "sample" }, [...reasons].slice(0, REASONS_SHOWN).map(reasonRow)),
        )
      : null,
  ];
}

/** @param {[string, string[]]} reason */
function reasonRow([message, ids]) {
  const links = ids
    .slice(0, 3)
    .map((id) => h("a", { href: `/console/jobs/${encodeURIComponent(id)}`, target: "_blank" }, id.slice(-8)));
  return h(
    "li",
    {},
    `${number(ids.length)} × ${message} `,
    h(
      "span",
      { class: "soft mono" },
      links.flatMap((link, at) => (at ? [", ", link] : [link])),
      ids.length > 3 ? ", …" : "",
    ),
  );
}

/** @param {string} text */
function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
