/**
 * Keys of the console: single letters, sequences like "g j", and `?`, which lists them. Keys do nothing while a person
 * writes, or while a dialog is open.
 *
 * @typedef {{keys: string, does: string, run?: (event: KeyboardEvent) => unknown}} Key keys: like "j" or "g j"; run: without
 *   it the key is only listed, and handled elsewhere
 */

import { h } from "../dom.js";
import { openDialog } from "./dialog.js";

const SEQUENCE_MS = 1500;
/** @type {Set<Key[]>} the newest last: it goes before those of earlier ones */
const lists = new Set();
let begun = "";
let begunAt = 0;

/** Activate these keys until the returned function is called. @param {Key[]} keys @returns {() => void} */
export function addKeys(keys) {
  lists.add(keys);
  return () => lists.delete(keys);
}

/** Whether typing there is text input. @param {EventTarget | null} target */
function isWriting(target) {
  const element = /** @type {Element | null} */ (target);
  return Boolean(element?.closest?.("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]"));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (isWriting(event.target))
    return event.key === "Escape" ? /** @type {HTMLElement} */ (event.target).blur() : undefined;
  if (document.querySelector("dialog[open]")) return;
  const isSoon = event.timeStamp - begunAt < SEQUENCE_MS;
  const typed = begun && isSoon ? `${begun} ${event.key}` : event.key;
  begun = "";
  const all = [...lists].reverse().flat();
  const found = all.find(({ keys, run }) => keys === typed && run);
  if (found?.run) {
    event.preventDefault();
    found.run(event);
  } else if (all.some(({ keys }) => keys.startsWith(`${typed} `))) {
    [begun, begunAt] = [typed, event.timeStamp];
  }
});

/** Show the list of keys. */
export function showKeys() {
  const seen = new Set();
  const all = [...lists].flat().filter(({ keys }) => !seen.has(keys) && seen.add(keys));
  const rows = all.map(({ keys, does }) =>
    h(
      "div",
      {},
      h(
        "dt",
        {},
        keys.split(" ").map((key) => h("kbd", {}, key)),
      ),
      h("dd", {}, does),
    ),
  );
  openDialog({
    title: "Keys",
    body: h("dl", { class: "keys" }, rows),
    actions: [{ label: "Close", value: false, isPrimary: true }],
  });
}
