/**
 * One photo of the list: picture, state in words, values from the AI, and buttons.
 *
 * @typedef {import("./photos.js").Photo} Photo
 *
 * @typedef {object} Actions the actions of the row's buttons
 * @property {(photo: Photo) => void} open
 * @property {(photo: Photo, values: Record<string, string | null>) => Promise<unknown>} correct
 * @property {(photo: Photo, button: HTMLButtonElement) => void} retry
 * @property {(photo: Photo, button: HTMLButtonElement) => void} cancel
 * @property {(photo: Photo, isByKeyboard: boolean) => void} remove
 * @property {(photo: Photo) => Promise<string>} freshPicture another URL, when the last one does not load
 */

import { fill, h, icon } from "./elements.js";
import { pictureOf } from "./picture.js";
import { CorrectionForm } from "./correction.js";
import { confidenceWords, FIELDS, nameOf, sortOf, stateOf, titled } from "./words.js";

const UNFINISHED = ["processing", "draft"];

export class Row {
  #photo;
  #actions;
  #image = h("img", { alt: "", decoding: "async", hidden: true, width: 112, height: 112 });
  #placeholder = h("span", { class: "placeholder" }, icon("image"));
  #open;
  #badge = h("span", { class: "badge" });
  #title = h("h3", { class: "title" });
  #values = h("dl", { class: "values" });
  #text = h("p", { class: "state-text" });
  #buttons = h("div", { class: "buttons" });
  #body = h("div", { class: "body" }, h("div", { class: "head" }, this.#title, this.#badge), this.#values, this.#text);
  #bar = h("div", { class: "bar", hidden: true }, h("i"));
  /** @type {CorrectionForm | null} */ #form = null;
  #shown = "";
  #buttonsShown = "";
  #source = "";

  /** @param {Photo} photo @param {Actions} actions */
  constructor(photo, actions) {
    this.#photo = photo;
    this.#actions = actions;
    this.#open = h(
      "button",
      { class: "picture", type: "button", onclick: () => actions.open(photo) },
      this.#placeholder,
      this.#image,
    );
    this.#image.onload = () => this.#pictureIsThere(true);
    this.#image.onerror = () => this.#pictureFailed();
    this.element = h(
      "div",
      { role: "listitem", class: "photo", id: photo.id },
      this.#open,
      this.#body,
      this.#buttons,
      this.#bar,
    );
    this.update();
  }

  /** Whether the row must stay, because a person writes in it or has the focus in it. */
  isInUse() {
    return this.#form !== null || this.element.matches(":focus-within");
  }

  focus() {
    this.#open.focus({ preventScroll: true });
  }

  update() {
    const photo = this.#photo;
    const { kind, badge, text, share } = stateOf(photo);
    this.element.hidden = photo.isHidden;
    this.#showPicture();
    const note = photo.note && !text ? `${photo.note}.` : "";
    const name = nameOf(photo);
    const { aiMetadata, corrections } = photo.asset ?? {};
    const shown = JSON.stringify([kind, badge, text, share, note, name, aiMetadata, corrections]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.element.dataset.kind = kind || "calm";
    this.#badge.textContent = badge;
    this.#badge.className = `badge ${kind}`;
    this.#text.textContent = text || note;
    this.#open.setAttribute("aria-label", `Show more of ${name}`);
    this.#showBar(share);
    this.#showValues();
    this.#showButtons(name);
  }

  /** @param {number | null | undefined} share */
  #showBar(share) {
    this.#bar.hidden = share === undefined;
    this.#bar.classList.toggle("endless", share === null);
    this.#bar.firstChild.style.transform = `scaleX(${share ?? 1})`;
  }

  #showValues() {
    const { asset } = this.#photo;
    const seen =
      asset && !UNFINISHED.includes(asset.status) ? FIELDS.filter((field) => asset.aiMetadata?.[field]?.value) : [];
    this.#title.classList.toggle("is-subtitle", seen.length > 0);
    this.#title.textContent = seen.length ? sortOf(asset) : nameOf(this.#photo);
    fill(
      this.#values,
      seen.map((field) => {
        const { value, confidence } = asset?.aiMetadata[field];
        const sure = confidenceWords(confidence, Boolean(asset?.corrections?.[field]));
        return h(
          "div",
          { class: field },
          h("dt", {}, titled(field)),
          h("dd", {}, h("span", { class: "value" }, value), " ", h("span", { class: "sure" }, sure)),
        );
      }),
    );
  }

  /** @param {string} name */
  #showButtons(name) {
    const wanted = this.#form ? [] : this.#wantedButtons();
    const key = wanted.map(([label]) => label).join() + name;
    if (key === this.#buttonsShown) return;
    const focused = /** @type {HTMLElement | null} */ (this.#buttons.querySelector(":focus"))?.dataset.act;
    this.#buttonsShown = key;
    fill(
      this.#buttons,
      wanted.map(([label, drawing, act]) =>
        h(
          "button",
          { type: "button", class: "quiet", "data-act": label, "aria-label": `${label}: ${name}`, onclick: act },
          icon(drawing),
          h("span", {}, label),
        ),
      ),
    );
    // When the focused button is gone, the focus moves to a harmless element of the row.
    if (focused) (this.#buttons.querySelector(`[data-act="${CSS.escape(focused)}"]`) ?? this.#open).focus();
  }

  /** @returns {[string, any, (event: any) => void][]} */
  #wantedButtons() {
    const photo = this.#photo;
    const retry = (/** @type {any} */ { currentTarget }) => this.#actions.retry(photo, currentTarget);
    const remove = (/** @type {any} */ { detail }) => this.#actions.remove(photo, detail === 0);
    if (photo.unsent)
      return photo.unsent.step === "refused"
        ? [
            ["Try again", "retry", retry],
            ["Remove", "trash", remove],
          ]
        : [["Remove", "trash", remove]];
    const { status } = photo.asset ?? {};
    if (UNFINISHED.includes(status))
      return [
        ["Cancel", "close", ({ currentTarget }) => this.#actions.cancel(photo, currentTarget)],
        ["Delete", "trash", remove],
      ];
    /** @type {[string, any, (event: any) => void][]} */
    const buttons = [["Correct", "edit", () => this.#edit()]];
    if (status === "failed" || status === "partial") buttons.push(["Run again", "retry", retry]);
    return [...buttons, ["Delete", "trash", remove]];
  }

  #edit() {
    this.#form = new CorrectionForm(
      /** @type {any} */ (this.#photo.asset),
      (values) => this.#actions.correct(this.#photo, values),
      () => this.#endEdit(),
    );
    this.#body.append(this.#form.element);
    this.element.classList.add("is-edited");
    this.#buttonsShown = "";
    this.#showButtons(nameOf(this.#photo));
    this.#form.focus();
  }

  #endEdit() {
    this.#form?.element.remove();
    this.#form = null;
    this.element.classList.remove("is-edited");
    this.#showButtons(nameOf(this.#photo));
    this.#buttons.querySelector("[data-act=Correct]")?.focus();
  }

  #showPicture() {
    const { asset } = this.#photo;
    const preview = asset?.images?.previews?.["320"]?.url;
    const original = asset?.images?.original?.url;
    if (preview) return this.#show(preview);
    const { file } = this.#photo;
    if (file) this.#photo.picture ??= pictureOf(file);
    if (!this.#photo.picture) return original && this.#show(original);
    this.#photo.picture.then((address) =>
      address ? !this.#source && this.#show(address) : original && this.#show(original),
    );
  }

  /** @param {string} address */
  #show(address) {
    // A signed URL changes with every answer, although the picture is the same.
    const same = (/** @type {string} */ text) => text.split("?")[0];
    if (same(address) === same(this.#source)) return;
    this.#source = address;
    this.#image.src = address;
  }

  #isTriedAgain = false;
  async #pictureFailed() {
    this.#pictureIsThere(false);
    // Only a signed URL expires.
    if (this.#isTriedAgain || !this.#photo.asset || !this.#source.includes("?")) return;
    this.#isTriedAgain = true;
    const address = await this.#actions.freshPicture(this.#photo).catch(() => "");
    if (address) this.#image.src = this.#source = address;
  }

  /** @param {boolean} isThere */
  #pictureIsThere(isThere) {
    this.#image.hidden = !isThere;
    this.#placeholder.hidden = isThere;
  }
}
