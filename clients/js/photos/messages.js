/** Short messages at the foot of the screen, with a way back; and what a screen reader hears of what has ended. */

import { fill, h, icon } from "./elements.js";
import { counted } from "./words.js";

const SHOWN_MS = 6000;
const HEARD_MS = 1500;
const FEW = 3;

export class Messages {
  #voice = h("p", { class: "visually-hidden", role: "status", "aria-live": "polite" });
  #toasts = h("div", { class: "toasts" });
  element = h("div", {}, this.#toasts, this.#voice);
  /** @type {string[]} */ #unheard = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /** A screen reader says it; many at once become one sentence. @param {string} text */
  say(text) {
    this.#unheard.push(text);
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      const texts = this.#unheard.splice(0);
      const more = texts.length - FEW;
      this.#voice.textContent = more > 0 ? `${texts.slice(-FEW).join(" ")} And ${counted(more, "more message", "more messages")}.` : texts.join(" ");
    }, HEARD_MS);
  }

  /**
   * @param {string} text
   * @param {{kind?: "" | "bad", undo?: () => void, isFocused?: boolean, ms?: number}} [options]
   * @returns {{close: () => void, change: (text: string) => void}}
   */
  show(text, { kind = "", undo, isFocused = false, ms = SHOWN_MS } = {}) {
    const words = h("span", {}, text);
    const close = () => element.remove();
    const back = undo && h("button", { type: "button", class: "undo", onclick: () => (close(), undo()) }, "Undo");
    const shut = !undo && h("button", { type: "button", class: "shut", "aria-label": "Close", onclick: close }, icon("close"));
    const element = h("div", { class: `toast ${kind}` }, words, back, shut);
    this.#toasts.append(element);
    this.say(text);
    if (isFocused) back?.focus();
    setTimeout(close, ms);
    return { close, change: (text) => fill(words, text) };
  }
}
