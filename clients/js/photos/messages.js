/**
 * Short messages at the foot of the screen, with a way back; and what a screen reader hears of what has ended.
 *
 * @typedef {{close: () => void, stay: (ms: number) => Message}} Message
 */

import { h, icon } from "./elements.js";

const SHOWN_MS = 6000;
const HEARD_MS = 1500;

export class Messages {
  #voice = h("p", { class: "visually-hidden", role: "status", "aria-live": "polite" });
  #offline = h(
    "p",
    { class: "offline", hidden: true },
    "You are offline. Your photos wait here and go on by themselves.",
  );
  #toasts = h("div", { class: "toasts" }, this.#offline);
  element = h("div", {}, this.#toasts, this.#voice);
  #home;
  /** @type {Map<string, Message>} by what they say */ #shown = new Map();
  /** @type {[string, string][]} */ #unheard = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /** @param {() => void} home puts the focus where it goes on, when its message goes */
  constructor(home) {
    this.#home = home;
  }

  /**
   * A screen reader says it; of many of one kind it says only how many.
   * @param {string} text @param {string} [many] what several of them are called: "photos are ready"
   */
  say(text, many = "") {
    this.#unheard.push([text, many]);
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      const kinds = Map.groupBy(this.#unheard.splice(0), ([text, many]) => many || text);
      this.#voice.textContent = [...kinds.values()]
        .map((of) => (of.length > 1 && of[0][1] ? `${of.length} ${of[0][1]}.` : of[0][0]))
        .join(" ");
    }, HEARD_MS);
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
    // What is shown already is neither said nor shown once more: it stays longer.
    const shown = undo ? undefined : this.#shown.get(text);
    if (shown) return shown.stay(ms);
    const words = h("span", {}, text);
    const close = () => {
      const hasFocus = element.matches(":focus-within");
      element.remove();
      clearTimeout(timer);
      if (this.#shown.get(text) === message) this.#shown.delete(text);
      if (hasFocus) this.#home();
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
