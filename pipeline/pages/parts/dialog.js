/** Dialogs: a question before something is changed, or something to read. One at a time. */

import { h } from "../dom.js";
import { number } from "./time.js";

/**
 * @typedef {{label: string, value: any, isPrimary?: boolean, isDangerous?: boolean}} Action
 */

/**
 * Show a dialog and return the value of the chosen action; false when it was closed otherwise. Restores the focus.
 * @param {{title: string, body?: any, actions: Action[], onReady?: (buttons: HTMLButtonElement[]) => void}} given
 *   onReady: gets the buttons of the actions, for example to disable one
 * @returns {Promise<any>}
 */
export function openDialog({ title, body, actions, onReady }) {
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  return new Promise((resolve) => {
    let chosen = /** @type {any} */ (false);
    const buttons = actions.map((action) => {
      const choose = (/** @type {Event} */ event) => {
        event.preventDefault();
        // Cancelling needs no valid form.
        if (action.value && !form.reportValidity()) return;
        chosen = action.value;
        dialog.close();
      };
      const type = action.isPrimary ? "submit" : "button";
      return h("button", { type, class: looksOf(action), onclick: choose }, action.label);
    });
    const form = h(
      "form",
      { class: "stack" },
      h("h2", { id: "dialog-title" }, title),
      body,
      h("div", { class: "row dialog-actions" }, buttons),
    );
    const onclose = () => {
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(chosen);
    };
    const dialog = h("dialog", { "aria-labelledby": "dialog-title", onclose }, form);
    document.body.append(dialog);
    onReady?.(buttons);
    dialog.showModal();
  });
}

/** @param {Action} action */
function looksOf({ isPrimary, isDangerous }) {
  if (isDangerous) return "danger primary";
  return isPrimary ? "primary" : "";
}

/**
 * Ask before something is done.
 * @param {object} given
 * @param {string} given.title the question
 * @param {string} [given.text] what will happen
 * @param {string} given.confirm the word on the button, a verb
 * @param {boolean} [given.isDangerous] it cannot be undone
 * @param {number} [given.count] number of items
 * @param {string} [given.typed] a text that must be typed first, like the id of a user
 * @returns {Promise<boolean>}
 */
export async function confirmed({ title, text, confirm, isDangerous, count, typed }) {
  const field = typed && h("input", { autocomplete: "off", spellcheck: "false", required: true, name: "typed" });
  const body = [
    count === undefined ? null : h("p", { class: "dialog-count number" }, number(count)),
    text && h("p", {}, text),
    field && h("label", {}, h("span", {}, "Type ", h("code", {}, typed), " to continue"), field),
  ];
  return openDialog({
    title,
    body,
    actions: [
      { label: "Cancel", value: false },
      { label: confirm, value: true, isPrimary: true, isDangerous },
    ],
    onReady([, act]) {
      if (!field) return;
      act.disabled = true;
      field.addEventListener("input", () => (act.disabled = field.value !== typed));
    },
  });
}
