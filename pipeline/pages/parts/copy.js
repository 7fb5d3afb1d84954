/** A text with a copy button. */

import { h } from "../dom.js";
import { toast } from "./toast.js";

/** @param {string} text @returns {HTMLElement} */
export function copyable(text) {
  const button = h(
    "button",
    { type: "button", class: "quiet copy", "aria-label": `Copy ${text}`, onclick: copy },
    "Copy",
  );
  return h("span", { class: "copyable" }, h("code", {}, text), button);

  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
      toast("Copied.");
    } catch {
      // Without https there is no clipboard: select the text, so that the person can copy it.
      getSelection()?.selectAllChildren(/** @type {Node} */ (button.previousSibling));
      toast("The browser does not let this page copy. The text is selected.");
    }
  }
}
