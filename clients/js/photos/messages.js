/**
 * Short messages at the foot of the screen, with undo; and announcements of results for screen readers.
 *
 * @typedef {{close: () => void, stay: (ms: number) => Message}} Message
 */

import { h, icon } from "./elements.js";

const SHOWN_MS = 6000;
const ANNOUNCE_MS = 1500;

export class Messages {
  #announcer = h("p", { class: "visually-hidden", role: "status", "aria-live": "polite" });
  #offline = h(
    "p",
    { class: "offline", hidden: true },
    "You are offline. Your photos are sent when you are online again.",
  );
  #toasts = h("div", { class: "toasts" }, this.#offline);
  element = h("div", {}, this.#toasts, this.#announcer);
  #moveFocus;
  /** @type {Map<string, Message>} by text */ #shown = new Map();
  /** @type {[string, string][]} */ #unannounced = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /** @param {() => void} moveFocus moves the focus on when a message with the focus closes */
  constructor(moveFocus) {
    this.#moveFocus = moveFocus;
  }

  /**
   * Announce a text to screen readers; of many announcements of one kind only the number.
   * @param {string} text @param {string} [many] the plural form: "photos are ready"
   */
  say(text, many = "") {
    this.#unannounced.push([text, many]);
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      const kinds = Map.groupBy(this.#unannounced.splice(0), ([text, many]) => many || text);
      this.#announcer.textContent = [...kinds.values()]
        .map((of) => (of.length > 1 && of[0][1] ? `${of.length} ${of[0][1]}.` : of[0][0]))
        .join(" ");
    }, ANNOUNCE_MS);
  }

  /** @param {boolean} isOffline */
  offline(isOffline) {
    if (this.#offline.hidden !== isOffline) return;
    this.#offline.hidden = !isOffline;
    this.say(isOffline ? this.#offline.textContent : "You are online again.");
  }

  /**
   * @param {string} text
   * @param {{kind?: "" | "bad", undo?: () => void, isFocused?: boolean, ms?: number}} [options]
   * @returns {Message}
   */
  show(text, { kind = "", undo, isFocused = false, ms = SHOWN_MS } = {}) {
    // A message that is shown already only stays longer.
    const shown = undo ? undefined : this.#shown.get(text);
    if (shown) return shown.stay(ms);
    const words = h("span", {}, text);
    const close = () => {
      const hasFocus = element.matches(":focus-within");
      element.remove();
      clearTimeout(timer);
      if (this.#shown.get(text) === message) this.#shown.delete(text);
      if (hasFocus) this.#moveFocus();
    };
    const back = undo && h("button", { type: "button", class: "undo", onclick: () => (close(), undo()) }, "Undo");
    const shut =
      !undo && h("button", { type: "button", class: "shut", "aria-label": "Close", onclick: close }, icon("close"));
    const element = h("div", { class: `toast ${kind}` }, words, back, shut);
    this.#toasts.append(element);
    this.say(text);
    if (isFocused) back?.focus();
    /** @type {ReturnType<typeof setTimeout>} */ let timer;
    const stay = (/** @type {number} */ ms) => {
      clearTimeout(timer);
      timer = setTimeout(close, ms);
      return message;
    };
    const message = { close, stay };
    if (!undo) this.#shown.set(text, message);
    return stay(ms);
  }
}
