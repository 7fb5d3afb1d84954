/** The number of matching and of selected jobs, and the actions for them. Its height never changes. */

import { fill, h } from "../dom.js";
import { ACTIONS } from "./bulk.js";
import { jobs as countWords } from "./job-words.js";
import { tell } from "./keyed.js";
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
  #told = h("span", { class: "number", role: "status" });
  #all = h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => this.toggleAll() });
  #clear = h("button", { type: "button", class: "quiet", onclick: () => (this.clear(), this.#calls.clear()) }, "Clear");
  #buttons = h("div", { class: "row toolbar-actions", role: "group", "aria-label": "Actions for the selected jobs" });
  element = h(
    "div",
    { class: "toolbar" },
    h("div", { class: "row toolbar-told" }, this.#told, this.#all, this.#clear),
    this.#buttons,
  );
  #calls;
  #state = "";
  #isAll = false;
  /** @type {any[]} */ #selected = [];
  /** @type {{count: number, isExact: boolean} | null} */ #count = null;

  /**
   * @param {boolean} mayChange
   * @param {{act: (action: import("./bulk.js").Action, selected: any[] | null) => unknown, clear: () => void}} calls
   */
  constructor(mayChange, calls) {
    this.#calls = calls;
    if (!mayChange) for (const element of [this.#all, this.#clear, this.#buttons]) element.remove();
    this.#tell();
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
          onclick: () => this.#calls.act(action, this.#isAll ? null : this.#selected),
        },
        `${ACTIONS[action].verb} …`,
      );
    fill(this.#buttons, actions.map(button));
    this.#tell();
  }

  /** @param {any[]} selected */
  select(selected) {
    this.#selected = selected;
    if (selected.length) this.#isAll = false;
    this.#tell();
  }

  /** @param {{count: number, isExact: boolean}} count */
  count(count) {
    this.#count = count;
    this.#tell();
  }

  clear() {
    this.#isAll = false;
    this.#selected = [];
    this.#tell();
  }

  toggleAll() {
    const isAll = !this.#isAll;
    if (isAll && !this.#count?.count) return;
    this.#calls.clear();
    this.#isAll = isAll;
    this.#tell();
  }

  #tell() {
    const { count = 0, isExact = true } = this.#count ?? {};
    const chosen = this.#selected.length;
    const matching = this.#count ? `${countWords(count, isExact)} ${count === 1 ? "matches" : "match"}` : " ";
    const told = this.#isAll
      ? `All that match: ${countWords(count, isExact)}`
      : chosen
        ? `${number(chosen)} selected`
        : matching;
    tell(this.#told, told);
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
