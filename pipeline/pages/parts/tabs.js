/** Links that look like tabs, one for each part of a list, with the number of its items. */

import { h } from "../dom.js";
import { compact } from "./time.js";

export class Tabs {
  element;
  /** @type {Map<string, {link: any, count: HTMLElement}>} */ #tabs = new Map();

  /**
   * @param {string} label
   * @param {{value: string, label: string}[]} tabs
   * @param {(value: string) => void} choose
   * @param {{hasCounts?: boolean}} [options] whether each tab has a number
   */
  constructor(label, tabs, choose, { hasCounts = false } = {}) {
    this.element = h("nav", { class: "tabs", "aria-label": label });
    for (const { value, label: word } of tabs) {
      const count = h("span", { class: "tab-count number" });
      const pick = (/** @type {MouseEvent} */ event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
        event.preventDefault();
        choose(value);
      };
      const link = h("a", { class: "tab", href: location.pathname, onclick: pick }, word, hasCounts && [" ", count]);
      this.#tabs.set(value, { link, count });
      this.element.append(link);
    }
  }

  /** @param {string} chosen @param {(value: string) => string} address of a tab */
  show(chosen, address) {
    for (const [value, { link }] of this.#tabs) {
      link.setAttribute("href", address(value));
      if (value === chosen) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    // Make it visible on a phone, without scrolling the page.
    const link = this.#tabs.get(chosen)?.link;
    if (link) this.element.scrollLeft = link.offsetLeft - this.element.clientWidth / 2 + link.clientWidth / 2;
  }

  /** @param {string} value @param {{count: number, isExact: boolean} | null} found null: it is not known */
  count(value, found) {
    const tab = this.#tabs.get(value);
    const text = found ? `${compact(found.count)}${found.isExact ? "" : "+"}` : "";
    if (tab && tab.count.textContent !== text) tab.count.textContent = text;
  }
}
