/** Parts of every view: its heading, and what it shows without data and after an error. */

import { h } from "../dom.js";
import { wordsOf } from "../api.js";

/** The head of a view. @param {string} title @param {...any} actions buttons or links on the right */
export function heading(title, ...actions) {
  return h("div", { class: "view-head" }, h("h1", {}, title), h("div", { class: "row" }, actions));
}

/** @param {string} title @param {any} [text] what it means or what to do @param {any} [action] */
export function emptyState(title, text, action) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), text && h("p", {}, text), action);
}

/** @param {any} error @param {(() => void) | null} [retry] of no use for an address that asks for what cannot be */
export function errorState(error, retry) {
  const isAsked = error?.status === 400 && location.search;
  const words =
    error?.status === 404 ? "The service does not have this function. Its version may be too old." : wordsOf(error);
  return h(
    "div",
    { class: "empty", role: "alert" },
    h("p", { class: "empty-title" }, error?.status === 0 ? "No answer" : "That did not work"),
    h("p", {}, words),
    isAsked
      ? h("a", { class: "button", href: location.pathname }, "Remove the filters")
      : retry && h("button", { type: "button", onclick: retry }, "Try again"),
  );
}

/** Grey lines as a placeholder of a text. @param {number} [lines] */
export function skeleton(lines = 3) {
  return h(
    "div",
    { class: "skeleton-block", "aria-hidden": "true" },
    Array.from({ length: lines }, () => h("span", { class: "skeleton" })),
  );
}
