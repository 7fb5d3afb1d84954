/** Short messages at the foot of the page that close after a time, with undo. */

import { h } from "../dom.js";
import { wordsOf } from "../api.js";

const SHOWN_MS = 6_000;
const SHOWN_WITH_UNDO_MS = 12_000;
const region = h("div", { class: "toasts", role: "status", "aria-live": "polite", "aria-label": "Messages" });
document.body.append(region);

/**
 * @param {string} text
 * @param {{kind?: "good" | "bad" | "", undo?: () => unknown}} [options]
 */
export function toast(text, { kind = "", undo } = {}) {
  /** @type {ReturnType<typeof setTimeout>} */ let timer;
  const close = () => element.remove();
  const wait = () => (timer = setTimeout(close, undo ? SHOWN_WITH_UNDO_MS : SHOWN_MS));
  const stay = () => clearTimeout(timer);
  const button = undo && h("button", { class: "quiet", type: "button", onclick: () => (close(), undo()) }, "Undo");
  const element = h(
    "div",
    { class: `toast ${kind}`, onpointerenter: stay, onpointerleave: wait, onfocusin: stay, onfocusout: wait },
    h("span", {}, text),
    button,
    h("button", { class: "quiet toast-close", type: "button", "aria-label": "Close the message", onclick: close }, "×"),
  );
  region.append(element);
  wait();
}

/** Show an error. @param {any} error */
export function toastError(error) {
  if (error?.name !== "AbortError") toast(wordsOf(error), { kind: "bad" });
}

/**
 * Do the action of a button: the button is disabled meanwhile, and an error is shown.
 * @template T
 * @param {HTMLButtonElement | null} button
 * @param {() => Promise<T>} act
 * @returns {Promise<T | undefined>}
 */
export async function acting(button, act) {
  if (button) button.disabled = true;
  try {
    return await act();
  } catch (error) {
    toastError(error);
  } finally {
    if (button) button.disabled = false;
  }
}
