/** The area for new photos: dropped, chosen, pasted or taken, with the chosen category. */

import { fill, h, icon } from "./elements.js";
import { megabytes, titled } from "./words.js";

const FEW_CATEGORIES = 6;
const ACCEPTED = "image/*,.heic,.heif,.avif";

export class DropArea {
  #add;
  #choice = h("div", { class: "choice" });
  #sees = h("p", { class: "sees" });
  #seesBriefly = h("p");
  #limits = h("p", { class: "limits" });
  /** @type {string[]} */ #categories = [];
  category = "";
  /** Fires when a person has chosen another category. @type {(category: string) => void} */ onCategory = () => {};

  /** @param {(files: Iterable<File>) => void} add */
  constructor(add) {
    this.#add = add;
    const choose = fileInput(add, { accept: ACCEPTED, multiple: true });
    const take = fileInput(add, { accept: "image/*", capture: "environment" });
    this.element = h(
      "section",
      { class: "drop", "aria-label": "Add photos" },
      this.#choice,
      h("div", { class: "hole" }, invitations(), buttons(choose, take), this.#limits),
      this.#sees,
      h("details", { class: "more" }, h("summary", {}, "What the AI can see"), this.#seesBriefly),
      choose,
      take,
    );
  }

  /** @param {{categories: string[], maxUploadBytes: number, providers: {name: string, sees: string | null}[]}} about @param {string} category */
  show({ categories, maxUploadBytes, providers }, category) {
    this.#categories = categories;
    this.#limits.textContent = `JPEG, PNG, WebP, GIF, AVIF or HEIC. Photos over ${megabytes(maxUploadBytes)} are made smaller.`;
    fill(this.#sees, abilitiesOf(providers));
    fill(this.#seesBriefly, abilitiesOf(providers));
    this.choose(category);
  }

  /** @param {string} category an allowed one; otherwise the first is chosen */
  choose(category) {
    const isAllowed = this.#categories.includes(category);
    this.category = isAllowed || !this.#categories.length ? category : this.#categories[0];
    if (this.#categories.length > FEW_CATEGORIES) fill(this.#choice, this.#select());
    else if (this.#categories.length > 1) fill(this.#choice, this.#radios());
  }

  #radios() {
    const name = `category-${Math.random()}`;
    const choices = this.#categories.map((category) =>
      h(
        "label",
        { class: "option" },
        h("input", {
          type: "radio",
          name,
          value: category,
          checked: category === this.category,
          onchange: () => this.#chosen(category),
        }),
        h("span", {}, titled(category)),
      ),
    );
    return h("fieldset", {}, h("legend", {}, "What is in the photos?"), h("div", { class: "options" }, choices));
  }

  #select() {
    const options = this.#categories.map((category) =>
      h("option", { value: category, selected: category === this.category }, titled(category)),
    );
    return h(
      "label",
      {},
      "What is in the photos?",
      h("select", { onchange: (/** @type {any} */ { target }) => this.#chosen(target.value) }, options),
    );
  }

  /** @param {string} category */
  #chosen(category) {
    this.category = category;
    this.onCategory(category);
  }

  /**
   * Accept files that are dropped on the element, and mark it while files are dragged over it.
   * @param {EventTarget} target @param {AbortSignal} signal
   */
  listen(target, signal) {
    let depth = 0;
    const mark = (/** @type {number} */ now) =>
      this.element.classList.toggle("is-over", (depth = Math.max(0, now)) > 0);
    const hasFiles = (/** @type {any} */ { dataTransfer }) => dataTransfer?.types.includes("Files");
    const on = (/** @type {string} */ name, /** @type {(event: any) => void} */ act) =>
      target.addEventListener(name, (event) => hasFiles(event) && (event.preventDefault(), act(event)), { signal });
    on("dragenter", () => mark(depth + 1));
    on("dragleave", () => mark(depth - 1));
    on("dragover", ({ dataTransfer }) => (dataTransfer.dropEffect = "copy"));
    on("drop", async ({ dataTransfer }) => {
      mark(0);
      this.#add(await dropped(dataTransfer));
    });
    document.addEventListener(
      "paste",
      (event) => {
        const files = event.clipboardData?.files ?? [];
        // Not files that an editor of the page or another <photo-queue> accepts.
        const isOfPage = event.defaultPrevented || /** @type {any} */ (event.composedPath()[0])?.isContentEditable;
        if (isOfPage || !files.length) return;
        event.preventDefault();
        this.#add(files);
      },
      { signal },
    );
  }
}

/** A hidden input for files. @param {(files: Iterable<File>) => void} add @param {Record<string, any>} props */
function fileInput(add, props) {
  const onchange = (/** @type {any} */ { target }) => {
    add(target.files);
    target.value = ""; // so that the same file again fires an event
  };
  return h("input", {
    type: "file",
    class: "hidden-input",
    tabindex: "-1",
    "aria-hidden": "true",
    onchange,
    ...props,
  });
}

/** One for a mouse, one for a touch screen: the style shows one of them. */
function invitations() {
  return [
    h("span", { class: "mark" }, icon("upload")),
    h("div", { class: "invitation" }, h("h2", {}, "Drop photos here"), h("p", {}, "or paste or choose them")),
    h("div", { class: "invitation by-hand" }, h("h2", {}, "Add photos"), h("p", {}, "Choose some, or take one now")),
  ];
}

/** @param {HTMLInputElement} choose @param {HTMLInputElement} take */
function buttons(choose, take) {
  return h(
    "div",
    { class: "ways" },
    h("button", { type: "button", class: "primary", onclick: () => choose.click() }, icon("image"), "Choose photos"),
    h("button", { type: "button", class: "take", onclick: () => take.click() }, icon("camera"), "Take a photo"),
  );
}

/** The files, also those in folders. @param {DataTransfer} transfer @returns {Promise<File[]>} */
export async function dropped({ items, files }) {
  // Read at once: the items are empty after the event.
  const entries = [...items].map((item) => item.webkitGetAsEntry?.());
  const plain = [...files];
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  return (await Promise.all(entries.map((entry) => (entry ? filesOf(entry) : [])))).flat();
}

/** @param {any} entry @returns {Promise<File[]>} */
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    /** @type {any[]} a hundred at most */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(filesOf))).flat().filter(({ name }) => !name.startsWith("."));
    found.push(...some);
  }
}

/** A text about what the AI can and cannot see. @param {{name: string, sees: string | null}[]} providers */
function abilitiesOf(providers) {
  const described = providers.filter(({ sees }) => sees);
  if (!described.length)
    return "The AI names the brand, model and colours that it can see. You can correct its mistakes.";
  if (described.length === 1) return described[0].sees;
  return described.map(({ name, sees }, index) => [index > 0 && h("br"), h("b", {}, name), ": ", sees]);
}
