/** The cells of a table, and changes of one row. */

import { h } from "../dom.js";

/** @param {import("./table.js").Column<any>} column */
export function headCell({ title, align, class: name = "" }) {
  return h(
    "th",
    { role: "columnheader", scope: "col", class: `${align === "end" ? "end" : ""} ${name}`.trim() },
    title,
  );
}

/** @param {import("./table.js").Column<any>} column @param {any} row */
export function bodyCell({ title, cell, align, class: name = "" }, row) {
  return h(
    "td",
    { role: "cell", class: `${align === "end" ? "end number" : ""} ${name}`.trim(), "data-label": title },
    h("span", { class: "value" }, cell(row)),
  );
}

/**
 * Replace only changed cells: a button that is replaced between press and release of the pointer would not
 * be clicked, and the focus would be lost.
 * @param {HTMLElement} row @param {HTMLElement[]} cells
 */
export function renew(row, cells) {
  cells.forEach((cell, at) => {
    const old = row.children[at];
    if (old.isEqualNode(cell)) return;
    if (old.contains(document.activeElement)) row.focus();
    old.replaceWith(cell);
  });
}

/** @param {HTMLElement} element @param {boolean} isSelected */
export function mark(element, isSelected) {
  element.classList.toggle("selected", isSelected);
  const box = /** @type {HTMLInputElement | null} */ (element.querySelector("td.check input"));
  if (box) box.checked = isSelected;
}
