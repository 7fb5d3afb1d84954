/**
 * Next and previous page of a list with cursors. The cursor is in the address; those of earlier pages are in the
 * history's state, so that they survive a reload.
 */

import { fill, h } from "../dom.js";
import { exact } from "./time.js";

export class Pager {
  element = h("nav", { class: "pager", "aria-label": "Pages" });
  #setQuery;

  /** @param {import("../router.js").Context["setQuery"]} setQuery */
  constructor(setQuery) {
    this.#setQuery = setQuery;
    // The first page may be shorter than its placeholder: a hidden pager does not jump.
    this.element.classList.add("is-empty");
  }

  /**
   * @param {object} page
   * @param {string | null} page.cursor of the page that is shown
   * @param {string | null | undefined} page.nextCursor
   * @param {number} page.count of rows that are shown
   * @param {string | null} [page.searchedTo] how far back was searched when less than a page was found
   */
  show({ cursor, nextCursor, count, searchedTo }) {
    this.element.classList.remove("is-empty");
    const trail = history.state?.trail ?? [];
    const previous = () =>
      this.#setQuery({ cursor: trail[trail.length - 1] }, { state: { trail: trail.slice(0, -1) } });
    const first = () => this.#setQuery({ cursor: null });
    const next = () => this.#setQuery({ cursor: nextCursor ?? null }, { state: { trail: [...trail, cursor] } });
    const isPartial = Boolean(nextCursor && searchedTo);
    const isAll = !cursor && !nextCursor && !trail.length;
    fill(
      this.element,
      h(
        "span",
        { class: "soft small number" },
        isPartial ? `Searched to ${exact(searchedTo ?? "")}.` : count ? `${count} shown` : "",
      ),
      !isAll &&
        h(
          "span",
          { class: "row" },
          cursor && !trail.length ? h("button", { type: "button", onclick: first }, "First page") : null,
          h("button", { type: "button", disabled: !trail.length, onclick: previous }, "Previous"),
          h("button", { type: "button", disabled: !nextCursor, onclick: next }, isPartial ? "Search further" : "Next"),
        ),
    );
  }
}
