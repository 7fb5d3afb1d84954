/** A small form in the row: a person corrects the values of a photo. */

import { h } from "./elements.js";
import { FIELDS, titled } from "./words.js";

const LONGEST = 200;

export class CorrectionForm {
  /** @type {Record<string, HTMLInputElement>} */ #fields = {};
  #original;
  #problem = h("p", { class: "problem", role: "alert" });
  #save = h("button", { class: "primary" }, "Save");

  /**
   * @param {Record<string, any>} asset
   * @param {(changes: Record<string, string | null>) => Promise<unknown>} save
   * @param {() => void} end
   */
  constructor({ aiMetadata }, save, end) {
    this.#original = Object.fromEntries(FIELDS.map((field) => [field, aiMetadata?.[field]?.value ?? ""]));
    const labels = FIELDS.map((field) => {
      this.#fields[field] = h("input", {
        name: field,
        value: this.#original[field],
        maxlength: LONGEST,
        autocomplete: "off",
      });
      return h("label", {}, titled(field), this.#fields[field]);
    });
    const onkeydown = (/** @type {KeyboardEvent} */ event) =>
      event.key === "Escape" && (event.stopPropagation(), end());
    const onsubmit = async (/** @type {Event} */ event) => {
      event.preventDefault();
      const changes = this.#changes();
      if (!Object.keys(changes).length) return end();
      this.#problem.textContent = "";
      this.#save.disabled = true;
      try {
        await save(changes);
        end();
      } catch (/** @type {any} */ error) {
        this.#problem.textContent = error.details?.[0]?.message ?? error.message;
        this.#save.disabled = false;
      }
    };
    const cancel = h("button", { type: "button", onclick: end }, "Cancel");
    const hint = h("p", { class: "hint" }, "Empty a field to return to the value from the AI.");
    this.element = h(
      "form",
      { class: "correction", onkeydown, onsubmit, "aria-label": "Correct what the AI saw" },
      labels,
      hint,
      this.#problem,
      h("div", { class: "row" }, this.#save, cancel),
    );
  }

  focus() {
    const first = FIELDS.find((field) => !this.#original[field]) ?? "brand";
    this.#fields[first].focus();
    this.#fields[first].select();
  }

  /** @returns {Record<string, string | null>} the changed values */
  #changes() {
    const now = FIELDS.map((field) => /** @type {const} */ ([field, this.#fields[field].value.trim()]));
    return Object.fromEntries(
      now.filter(([field, text]) => text !== this.#original[field]).map(([field, text]) => [field, text || null]),
    );
  }
}
