/** The number of matching and of selected jobs, and the actions for them. Its height never changes. */

import { fill, h } from "../dom.js";
import { ACTIONS } from "./bulk.js";
import { jobs as countWords } from "./job-words.js";
import { setText } from "./keyed.js";
import { number } from "./time.js";

/** @type {Record<string, import("./bulk.js").Action[]>} */
const POSSIBLE = {
  "": ["retry", "cancel", "postpone", "delete"],
  waiting: ["cancel", "postpone", "delete"],
  delayed: ["resume", "cancel", "delete"],
  active: ["cancel", "delete"],
  completed: ["retry", "reanalyze", "delete"],
  failed: ["retry", "reanalyze", "delete"],
  background: ["keep"],
};

export class Selection {
  #summary = h("span", { class: "number", role: "status" });
  #all = h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => this.toggleAll() });
  #clear = h(
    "button",
    { type: "button", class: "quiet", onclick: () => (this.clear(), this.#callbacks.clear()) },
    "Clear",
  );
  #buttons = h("div", { class: "row toolbar-actions", role: "group", "aria-label": "Actions for the selected jobs" });
  element = h(
    "div",
    { class: "toolbar" },
    h("div", { class: "row toolbar-summary" }, this.#summary, this.#all, this.#clear),
    this.#buttons,
  );
  #callbacks;
  #state = "";
  #isAll = false;
  /** @type {any[]} */ #selected = [];
  /** @type {{count: number, isExact: boolean} | null} */ #count = null;

  /**
   * @param {boolean} mayChange
   * @param {{act: (action: import("./bulk.js").Action, selected: any[] | null) => unknown, clear: () => void}} callbacks
   */
  constructor(mayChange, callbacks) {
    this.#callbacks = callbacks;
    if (!mayChange) for (const element of [this.#all, this.#clear, this.#buttons]) element.remove();
    this.#update();
  }

  /** The filter has changed. @param {string} state */
  show(state) {
    this.#state = state;
    this.#count = null;
    this.clear();
    const actions = POSSIBLE[state] ?? POSSIBLE[""];
    const button = (/** @type {import("./bulk.js").Action} */ action) =>
      h(
        "button",
        {
          type: "button",
          class: ACTIONS[action].isDangerous ? "danger" : "",
          onclick: () => this.#callbacks.act(action, this.#isAll ? null : this.#selected),
        },
        `${ACTIONS[action].verb} …`,
      );
    fill(this.#buttons, actions.map(button));
    this.#update();
  }

  /** @param {any[]} selected */
  select(selected) {
    this.#selected = selected;
    if (selected.length) this.#isAll = false;
    this.#update();
  }

  /** @param {{count: number, isExact: boolean}} count */
  count(count) {
    this.#count = count;
    this.#update();
  }

  clear() {
    this.#isAll = false;
    this.#selected = [];
    this.#update();
  }

  toggleAll() {
    const isAll = !this.#isAll;
    if (isAll && !this.#count?.count) return;
    this.#callbacks.clear();
    this.#isAll = isAll;
    this.#update();
  }

  #update() {
    const { count = 0, isExact = true } = this.#count ?? {};
    const chosen = this.#selected.length;
    const matching = this.#count ? `${countWords(count, isExact)} ${count === 1 ? "matches" : "match"}` : " ";
    const text = this.#isAll
      ? `All that match: ${countWords(count, isExact)}`
      : chosen
        ? `${number(chosen)} selected`
        : matching;
    setText(this.#summary, text);
    this.#all.textContent = this.#isAll
      ? "Select none"
      : `Select all${this.#count ? ` ${isExact ? number(count) : ""}` : ""}`;
    this.#all.setAttribute("aria-pressed", String(this.#isAll));
    this.#all.disabled = !count;
    this.#clear.hidden = !chosen || this.#isAll;
    for (const button of this.#buttons.children)
      /** @type {HTMLButtonElement} */ (button).disabled = !chosen && !this.#isAll;
  }
}
