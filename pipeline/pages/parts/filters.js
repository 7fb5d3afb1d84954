/**
 * A form whose fields are the filters in the address. Choices apply at once, texts when the person pauses.
 *
 * @typedef {object} Field
 * @property {string} name in the query
 * @property {string} label
 * @property {"search" | "text" | "select" | "instant"} [type] instant: a local date and time, in the query an UTC text
 * @property {string} [placeholder]
 * @property {string[]} [suggestions] of a text
 * @property {(string | {value: string, label: string})[]} [options] of a select; the first is chosen when the query has none
 */

import { h } from "../dom.js";
import { addKeys } from "./keyboard.js";

const PAUSE_MS = 350;
let count = 0;

export class Filters {
  element;
  #fields;
  /** @type {Map<string, HTMLInputElement | HTMLSelectElement>} */ #inputs = new Map();
  #setQuery;
  #clear;
  #more;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #isSending = false;
  #isWriting = false; // a text written without leaving the field is one entry of the history, not one for each pause
  #removeKeys;

  /**
   * @param {Field[]} fields a field of type search is first and gets the focus with "/"
   * @param {URLSearchParams} query
   * @param {import("../router.js").Context["setQuery"]} setQuery
   */
  constructor(fields, query, setQuery) {
    this.#fields = fields;
    this.#setQuery = setQuery;
    this.#clear = h("button", { type: "button", class: "quiet", onclick: this.#reset }, "Clear filters");
    this.#more = h(
      "button",
      { type: "button", class: "filters-more", "aria-expanded": "false", onclick: this.#unfold },
      "Filters",
    );
    const labels = fields.map((field) => this.#label(field));
    const isSearched = fields[0]?.type === "search";
    this.element = h(
      "form",
      {
        class: "filters",
        role: "search",
        "aria-label": "Filters",
        onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), this.#send()),
        oninput: this.#sendAfterPause,
        onchange: this.#sendNow,
        onfocusout: () => (this.#isWriting = false),
      },
      isSearched ? labels[0] : null,
      this.#more,
      h("div", { class: "filters-rest" }, isSearched ? labels.slice(1) : labels, this.#clear),
    );
    const first = this.#inputs.get(fields[0]?.name);
    this.#removeKeys = addKeys(
      first
        ? [{ keys: "/", does: "Search", run: () => (first.checkVisibility() || this.#unfold(), first.focus()) }]
        : [],
    );
    this.update(query);
  }

  dispose() {
    clearTimeout(this.#timer);
    this.#removeKeys();
  }

  /** The filters that are set, by name. @param {URLSearchParams} query @returns {Record<string, string>} */
  values(query) {
    const pairs = this.#fields.map(({ name }) => [name, query.get(name) ?? ""]);
    return Object.fromEntries(pairs.filter(([, value]) => value));
  }

  /** The address has changed. @param {URLSearchParams} query */
  update(query) {
    let set = 0;
    for (const { name, type } of this.#fields) {
      const value = query.get(name) ?? "";
      const input = this.#inputs.get(name);
      if (value) set += 1;
      // A field with the focus is not overwritten by the address.
      if (input && !(this.#isSending && input === document.activeElement))
        input.value = type === "instant" ? localOf(value) : value;
    }
    this.#clear.hidden = !set;
    const folded = this.#fields.filter(({ type, name }) => type !== "search" && query.get(name)).length;
    this.#more.textContent = folded ? `Filters (${folded})` : "Filters";
  }

  /** @param {Field} field */
  #label({ name, label, type = "text", placeholder, options = [], suggestions }) {
    const list =
      suggestions &&
      h(
        "datalist",
        { id: `suggestions-${++count}` },
        suggestions.map((each) => h("option", { value: each })),
      );
    const kind = { search: "search", text: "text", instant: "datetime-local", select: "" }[type];
    const input =
      type === "select"
        ? h(
            "select",
            { name },
            options
              .map((each) => (typeof each === "string" ? { value: each, label: each } : each))
              .map(({ value, label }) => h("option", { value }, label)),
          )
        : h("input", {
            name,
            type: kind,
            placeholder,
            autocomplete: "off",
            autocapitalize: "off",
            spellcheck: "false",
            list: list?.id,
            enterkeyhint: "search",
            maxlength: "200",
          });
    this.#inputs.set(name, input);
    return h("label", { class: `filter ${type}` }, label, input, list);
  }

  #sendAfterPause = (/** @type {Event} */ event) => {
    if (/** @type {Element} */ (event.target).matches("select")) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#send(this.#isWriting);
      this.#isWriting = true;
    }, PAUSE_MS);
  };

  // While a year is typed, each digit makes a valid date.
  #sendNow = (/** @type {Event} */ event) =>
    /** @type {Element} */ (event.target).matches("[type=datetime-local]") ? this.#sendAfterPause(event) : this.#send();

  #reset = () => {
    for (const input of this.#inputs.values()) input.value = "";
    this.#send();
    this.#inputs.get(this.#fields[0].name)?.focus();
  };

  #unfold = () => {
    const isOpen = this.element.classList.toggle("is-open");
    this.#more.setAttribute("aria-expanded", String(isOpen));
  };

  /** @param {boolean} [replace] the address of before */
  #send(replace = false) {
    clearTimeout(this.#timer);
    /** @type {Record<string, string | null>} */
    const changes = { cursor: null };
    const query = new URLSearchParams(location.search);
    for (const { name, type } of this.#fields) {
      const value = this.#inputs.get(name)?.value.trim() ?? "";
      const before = query.get(name) ?? "";
      // The field has no seconds and cannot tell the double hour in autumn apart, so an unchanged value stays as it was.
      if (type !== "instant" || !value) changes[name] = value;
      else changes[name] = value === localOf(before) ? before : instantOf(value);
    }
    this.#isSending = true;
    this.#setQuery(changes, { replace });
    this.#isSending = false;
  }
}

/** The UTC text of a typed date; a year may be too large. @param {string} local */
function instantOf(local) {
  const date = new Date(local);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString();
}

/** The value for <input type="datetime-local">. @param {string} instant */
function localOf(instant) {
  const date = new Date(instant);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
