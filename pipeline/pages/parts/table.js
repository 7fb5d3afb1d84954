/**
 * A table of data: reachable by keyboard (j/k or arrows move, Enter opens, x selects), with states for loading,
 * for no rows and for an error. Rows keep their elements when data are read again, so that focus and selection stay. On
 * phones each row becomes a card (console.css).
 *
 * @template Row
 * @typedef {object} Column
 * @property {string} title
 * @property {(row: Row) => any} cell a text or elements
 * @property {"start" | "end"} [align]
 * @property {string} [class] of its cells: "grow", "nowrap", "clip" (one line, cut at its width)
 */

/**
 * @typedef {{title: string, text?: any, action?: any}} Empty
 */

import { wordsOf } from "../api.js";
import { fill, h } from "../dom.js";
import { addKeys } from "./keyboard.js";
import { arrange } from "./keyed.js";
import { emptyState, errorState } from "./states.js";
import { bodyCell, headCell, mark, renew } from "./table-cells.js";

/** @template Row */
export class DataTable {
  element;
  /** @type {Set<string>} keys of the rows that are selected */ selected = new Set();
  #given;
  #head;
  #body;
  #note = h("div", { class: "table-note", hidden: true });
  #table;
  /** @type {Map<string, {row: Row, text: string, element: HTMLTableRowElement}>} */ #rows = new Map();
  #removeKeys;

  /**
   * @param {object} given
   * @param {string} given.caption what the rows are, for screen readers
   * @param {Column<Row>[]} given.columns
   * @param {(row: Row) => string} given.key
   * @param {(row: Row) => string | null | undefined} [given.href] the target of Enter or a click on the row
   * @param {(row: Row) => string} [given.label] the name of the row's checkbox; if given, rows can be selected
   * @param {(selected: Row[]) => void} [given.onSelect]
   * @param {Empty | (() => Empty)} given.empty
   * @param {number} [given.skeletonRows]
   */
  constructor(given) {
    this.#given = given;
    this.#head = h(
      "tr",
      { role: "row" },
      given.label && h("th", { role: "columnheader", scope: "col", class: "check" }, this.#allBox()),
      given.columns.map(headCell),
    );
    this.#body = h("tbody", { role: "rowgroup", onclick: this.#click, onkeydown: this.#key });
    this.#table = h(
      "table",
      { class: "data", role: "table" },
      h("caption", { class: "visually-hidden" }, given.caption),
      h("thead", { role: "rowgroup" }, this.#head),
      this.#body,
    );
    this.element = h("div", { class: "table-frame card" }, this.#table, this.#note);
    this.#removeKeys = addKeys([
      { keys: "j", does: "Next row", run: () => this.#move(1) },
      { keys: "k", does: "Row before", run: () => this.#move(-1) },
      ...(given.href ? [{ keys: "Enter", does: "Open the row" }] : []),
      ...(given.label ? [{ keys: "x", does: "Select the row", run: () => this.#toggleFocused() }] : []),
    ]);
  }

  dispose() {
    this.#removeKeys();
  }

  /** Show grey rows at first; later the old rows stay, dimmed. */
  loading() {
    this.#table.setAttribute("aria-busy", "true");
    if (this.#rows.size) return;
    this.#note.hidden = true;
    this.#table.hidden = false;
    const { columns, label, skeletonRows = 8 } = this.#given;
    const cells = () => [
      label && h("td", { role: "cell", class: "check" }),
      columns.map(() => h("td", { role: "cell" }, h("span", { class: "skeleton" }))),
    ];
    fill(
      this.#body,
      Array.from({ length: skeletonRows }, () => h("tr", { role: "row", class: "skeleton-row" }, cells())),
    );
  }

  /** @param {Row[]} rows */
  show(rows) {
    this.#table.setAttribute("aria-busy", "false");
    const { key, empty } = this.#given;
    const before = this.#rows;
    this.#rows = new Map(rows.map((row) => [key(row), this.#updated(before.get(key(row)), row)]));
    for (const each of this.selected) if (!this.#rows.has(each)) this.selected.delete(each);
    arrange(
      this.#body,
      [...this.#rows.values()].map(({ element }) => element),
    );
    this.#table.hidden = !rows.length;
    this.#note.hidden = rows.length > 0;
    if (!rows.length) {
      const { title, text, action } = typeof empty === "function" ? empty() : empty;
      fill(this.#note, emptyState(title, text, action));
    }
    this.#selectionChanged();
  }

  /** @param {any} error @param {() => void} [retry] */
  fail(error, retry) {
    this.#table.setAttribute("aria-busy", "false");
    this.#rows.clear();
    fill(this.#body);
    this.#table.hidden = true;
    this.#note.hidden = false;
    fill(this.#note, errorState(error, retry));
  }

  /** The list could not be read again: show the error below it, where it moves nothing. @param {any} error */
  stale(error) {
    if (!this.#rows.size) return;
    this.#note.hidden = false;
    fill(
      this.#note,
      emptyState("These rows are not up to date", `${wordsOf(error)}. The page tries again automatically.`),
    );
  }

  clearSelection() {
    this.selected.clear();
    for (const { element } of this.#rows.values()) mark(element, false);
    this.#selectionChanged();
  }

  /** @returns {Row[]} */
  get selectedRows() {
    return [...this.#rows].filter(([key]) => this.selected.has(key)).map(([, { row }]) => row);
  }

  /** @param {{row: Row, text: string, element: HTMLTableRowElement} | undefined} before @param {Row} row */
  #updated(before, row) {
    const text = JSON.stringify(row);
    if (before?.text === text) return before;
    const element =
      before?.element ??
      h("tr", {
        role: "row",
        tabindex: "-1",
        "data-key": this.#given.key(row),
        class: this.#given.href?.(row) ? "opens" : "",
      });
    const { columns, label } = this.#given;
    const cells = [
      ...(label ? [h("td", { role: "cell", class: "check" }, this.#box(row))] : []),
      ...columns.map((column) => bodyCell(column, row)),
    ];
    if (before) renew(element, cells);
    else fill(element, cells);
    return { row, text, element };
  }

  // selection

  /** @param {Row} row */
  #box(row) {
    const { key, label } = this.#given;
    return h("input", {
      type: "checkbox",
      checked: this.selected.has(key(row)),
      "aria-label": `Select ${label?.(row)}`,
      onchange: () => this.#toggle(key(row)),
    });
  }

  #allBox() {
    return h("input", {
      type: "checkbox",
      "aria-label": "Select all rows shown",
      onchange: (/** @type {any} */ { target }) => {
        for (const [key, { element }] of this.#rows) {
          if (target.checked) this.selected.add(key);
          else this.selected.delete(key);
          mark(element, target.checked);
        }
        this.#selectionChanged();
      },
    });
  }

  /** @param {string} key */
  #toggle(key) {
    if (!this.selected.delete(key)) this.selected.add(key);
    const found = this.#rows.get(key);
    if (found) mark(found.element, this.selected.has(key));
    this.#selectionChanged();
  }

  #toggleFocused() {
    const key = this.#focused()?.dataset.key;
    if (key !== undefined) this.#toggle(key);
  }

  #selectionChanged() {
    const box = /** @type {HTMLInputElement | null} */ (this.#head.querySelector("input"));
    if (!box) return;
    const count = this.selected.size;
    box.checked = count > 0 && count === this.#rows.size;
    box.indeterminate = count > 0 && count < this.#rows.size;
    this.#given.onSelect?.(this.selectedRows);
  }

  // moving

  /** @returns {HTMLElement | null} the row that has the focus */
  #focused() {
    return document.activeElement?.closest("tr[data-key]") ?? null;
  }

  /** @param {number} by */
  #move(by) {
    const rows = /** @type {HTMLElement[]} */ ([...this.#body.querySelectorAll("tr[data-key]")]);
    const at = rows.indexOf(/** @type {any} */ (this.#focused()));
    const next = at < 0 ? rows[by > 0 ? 0 : rows.length - 1] : rows[at + by];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  /** @param {KeyboardEvent} event */
  #key = (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.key === "Enter" && target.matches("tr[data-key]")) this.#open(target);
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || target.closest("input:not([type=checkbox]), select, textarea")) return;
    event.preventDefault();
    this.#move(by);
  };

  /** @param {HTMLElement} element */
  #open(element) {
    const found = this.#rows.get(element.dataset.key ?? "");
    const href = found && this.#given.href?.(found.row);
    if (href) this.#follow(href);
  }

  /** Follow a link. @param {string} href */
  #follow(href) {
    const link = h("a", { href, hidden: true });
    this.element.append(link);
    link.click();
    link.remove();
  }

  /** @param {MouseEvent} event */
  #click = (event) => {
    const target = /** @type {Element} */ (event.target);
    if (target.closest("a, button, input, label, select, summary, td.check") || getSelection()?.toString()) return;
    const row = target.closest("tr[data-key]");
    if (row) this.#open(/** @type {HTMLElement} */ (row));
  };
}
