/** Photos are hidden at once and deleted a little later, so that a person can undo it. */

import { counted } from "./words.js";

const UNDO_MS = 6000;

export class Deletions {
  #messages;
  #actions;
  /** @type {Set<import("./photos.js").Photo>} hidden, and not deleted yet */ #pending = new Set();
  /** @type {{close: () => void} | null} */ #toast = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /**
   * @param {import("./messages.js").Messages} messages
   * @param {{hide: (photo: any, isHidden: boolean) => void, delete: (photo: any) => void}} actions
   */
  constructor(messages, actions) {
    this.#messages = messages;
    this.#actions = actions;
  }

  /** @param {import("./photos.js").Photo} photo @param {boolean} isByKeyboard */
  add(photo, isByKeyboard) {
    this.#pending.add(photo);
    this.#actions.hide(photo, true);
    this.#toast?.close();
    clearTimeout(this.#timer);
    const text = `${counted(this.#pending.size, "photo")} deleted.`;
    this.#toast = this.#messages.show(text, { undo: () => this.#undo(), isFocused: isByKeyboard, ms: UNDO_MS });
    this.#timer = setTimeout(() => this.now(), UNDO_MS);
  }

  /** The page is closed, or the time for undo is over. */
  now() {
    clearTimeout(this.#timer);
    const photos = [...this.#pending];
    this.#pending.clear();
    photos.forEach((photo) => this.#actions.delete(photo));
  }

  #undo() {
    clearTimeout(this.#timer);
    for (const photo of this.#pending) this.#actions.hide(photo, false);
    this.#pending.clear();
    this.#messages.say("Undone. Nothing was deleted.");
  }
}
