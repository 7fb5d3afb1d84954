/**
 * A dialog for an action on many items, in chunks: first the count and a sample, then the progress, which can be stopped,
 * then the result. After a network failure it continues: to repeat a chunk does no harm.
 *
 * @typedef {{count: number, isExact: boolean, sample: any[]}} Preview sample: texts or elements
 * @typedef {{done: number, skipped: number, refused: {jobId: string, message: string}[], nextCursor: string | null}} Chunk
 *
 * @typedef {object} Work
 * @property {string} title the question
 * @property {string} text what will happen
 * @property {string} verb like "Retry"
 * @property {string} past like "retried"
 * @property {(count: number, isExact?: boolean) => string} things like "3 jobs"
 * @property {any[]} [scope] the filter, as elements
 * @property {any} [fields] further form elements
 * @property {boolean} [isDangerous] it cannot be undone
 * @property {(count: number) => string} [typed] a word that must be typed first; "" for none
 * @property {boolean} [isAsked] the person has confirmed already
 * @property {(signal: AbortSignal) => Promise<Preview>} preview
 * @property {(cursor: string | null, signal: AbortSignal) => Promise<Chunk>} chunk
 * @property {() => unknown} [undo]
 */

import { isAbort, wordsOf } from "../api.js";
import { backoffMs } from "../client/delays.js";
import { fill, h } from "../dom.js";
import { descriptionOf, doneWords, previewOf, resultOf, typedField } from "./chunk-texts.js";
import { errorState, skeleton } from "./states.js";
import { countdown, number } from "./time.js";
import { toast, toastError } from "./toast.js";

const MAX_FAILURES = 4; // more failures do not make the delay longer
const REFUSED_LISTED = 20; // refusals of each chunk that the service lists

/** @param {Work} work @returns {Promise<number>} how many it was done with */
export function doInChunks(work) {
  return new ChunkDialog(work).open();
}

class ChunkDialog {
  #work;
  #body = h("div", { class: "stack bulk-body" });
  #actions = h("div", { class: "row dialog-actions" });
  #heading = h("h2", { id: "bulk-title", tabindex: "-1" });
  #form = h(
    "form",
    { class: "stack", onsubmit: (/** @type {Event} */ event) => event.preventDefault() },
    this.#heading,
    this.#body,
    this.#actions,
  );
  #dialog = h(
    "dialog",
    {
      class: "bulk",
      "aria-labelledby": "bulk-title",
      oncancel: (/** @type {Event} */ event) => this.#escape(event),
      onclose: () => this.#end(),
    },
    this.#form,
  );
  #alive = new AbortController();
  #isRunning = false;
  /** @type {import("./chunk-texts.js").Total} */
  #total = { done: 0, skipped: 0, refused: 0, isLost: false, isCut: false, reasons: new Map() };
  /** @type {(done: number) => void} */ #resolve = () => {};
  #isToUndo = false;
  #before = /** @type {HTMLElement | null} */ (document.activeElement);

  /** @param {Work} work */
  constructor(work) {
    this.#work = work;
    this.#heading.textContent = work.title;
  }

  /** @returns {Promise<number>} */
  open() {
    document.body.append(this.#dialog);
    this.#dialog.showModal();
    addEventListener("beforeunload", this.#warn);
    this.#ask();
    return new Promise((resolve) => (this.#resolve = resolve));
  }

  // the preview

  async #ask() {
    this.#show(
      [...descriptionOf(this.#work), h("div", { class: "bulk-count" }, skeleton(3))],
      [this.#button("Back", () => this.#dialog.close())],
    );
    this.#form.setAttribute("aria-busy", "true");
    try {
      const preview = await this.#work.preview(this.#alive.signal);
      if (!this.#alive.signal.aborted) this.#confirm(preview);
    } catch (error) {
      if (!isAbort(error))
        this.#show([errorState(error, () => this.#ask())], [this.#button("Back", () => this.#dialog.close())]);
    } finally {
      this.#form.removeAttribute("aria-busy");
    }
  }

  /** @param {Preview} preview */
  #confirm(preview) {
    const { count, isExact } = preview;
    const { isAsked, verb, things, fields, isDangerous } = this.#work;
    if (!count)
      return this.#show(
        [h("p", {}, "There are none that this action can change.")],
        [this.#button("Close", () => this.#dialog.close(), "primary")],
      );
    const start = () => this.#run(count, isExact);
    if (isAsked) return start();
    const go = this.#button(`${verb} ${things(count, isExact)}`, start, isDangerous ? "danger primary" : "primary");
    const typed = this.#work.typed?.(count) ?? "";
    const field = typed && typedField(typed, (isRight) => (go.disabled = !isRight));
    go.disabled = Boolean(typed);
    this.#form.onsubmit = (event) => (event.preventDefault(), go.disabled || start());
    this.#show(
      [
        ...descriptionOf(this.#work),
        previewOf(preview, things),
        fields,
        field && h("label", {}, h("span", {}, "Type ", h("code", {}, typed), " to continue"), field),
      ],
      [this.#button("Back", () => this.#dialog.close()), go],
    );
    (field || go).focus();
  }

  // the progress

  /** @param {number} count @param {boolean} isExact */
  async #run(count, isExact) {
    this.#isRunning = true;
    this.#form.onsubmit = (/** @type {Event} */ event) => event.preventDefault();
    const progress = h("progress", { max: String(count), "aria-labelledby": "bulk-title" });
    // "At least so many" permits no percentage.
    if (isExact) progress.value = 0;
    const status = h("p", { class: "number" });
    const trouble = h("p", { class: "bulk-trouble small", role: "status" });
    const stop = this.#button("Stop", () => this.#alive.abort());
    this.#alive.signal.addEventListener("abort", () => ((stop.disabled = true), (stop.textContent = "Stopping …")));
    this.#show([progress, status, trouble], [stop]);
    stop.focus();
    let problem = /** @type {any} */ (null);
    let cursor = /** @type {string | null} */ (null);
    let isStopped = true;
    try {
      do {
        status.textContent = this.#progressWords(count, isExact);
        cursor = this.#add(await this.#withRetries(cursor, trouble));
        const { done, skipped, refused } = this.#total;
        if (isExact) progress.value = Math.min(count, done + skipped + refused);
      } while (cursor && !this.#alive.signal.aborted);
      isStopped = Boolean(cursor);
    } catch (error) {
      if (!isAbort(error)) problem = error;
    }
    this.#isRunning = false;
    if (this.#dialog.open) this.#showResult(problem, isStopped);
    // The person went back, or pressed Escape twice.
    else if (isStopped) toast(`Stopped: ${this.#progressWords(count, isExact)}`, { kind: "bad" });
    else toast(doneWords(this.#work, this.#total), { kind: "good" });
  }

  /** One chunk, with retries until the service has answered. @param {string | null} cursor @param {HTMLElement} trouble */
  async #withRetries(cursor, trouble) {
    const { signal } = this.#alive;
    for (let failures = 1; ; failures += 1) {
      try {
        // A request that was sent is awaited: the service does it anyway, and it must be counted.
        const chunk = await this.#work.chunk(cursor, signal);
        fill(trouble);
        return chunk;
      } catch (/** @type {any} */ error) {
        if (signal.aborted || isAbort(error) || !(error.status === 0 || error.status === 429 || error.status >= 500))
          throw error;
        this.#total.isLost = true;
        const waitMs = error.retryAfterMs ?? 500 + backoffMs(Math.min(failures, MAX_FAILURES));
        fill(trouble, `${wordsOf(error)}. It continues automatically: next try `, countdown(waitMs / 1000), ".");
        await this.#pause(waitMs);
        signal.throwIfAborted();
      }
    }
  }

  /** @param {number} ms @returns {Promise<void>} ends early when the network is back or the person stops it */
  #pause(ms) {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        removeEventListener("online", wake);
        this.#alive.signal.removeEventListener("abort", wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      addEventListener("online", wake);
      this.#alive.signal.addEventListener("abort", wake);
    });
  }

  /** @param {Chunk} chunk */
  #add({ done, skipped, refused, nextCursor }) {
    this.#total.done += done;
    this.#total.skipped += skipped;
    this.#total.refused += refused.length;
    this.#total.isCut ||= refused.length >= REFUSED_LISTED;
    const { reasons } = this.#total;
    for (const { jobId, message } of refused) reasons.set(message, [...(reasons.get(message) ?? []), jobId]);
    return nextCursor;
  }

  /** @param {number} count @param {boolean} isExact */
  #progressWords(count, isExact) {
    return `${number(this.#total.done)} of ${this.#work.things(count, isExact)} ${this.#work.past}.`;
  }

  // the result

  /** @param {any} problem @param {boolean} isStopped */
  #showResult(problem, isStopped) {
    const { undo } = this.#work;
    this.#heading.textContent = problem ? "Stopped by an error" : isStopped ? "Stopped" : "Done";
    const close = this.#button("Close", () => this.#dialog.close(), "primary");
    this.#show(resultOf(this.#work, this.#total, { problem, isStopped }), [
      undo && this.#total.done ? this.#button("Undo", () => ((this.#isToUndo = true), this.#dialog.close())) : null,
      close,
    ]);
    close.focus();
  }

  #end() {
    this.#alive.abort();
    removeEventListener("beforeunload", this.#warn);
    this.#dialog.remove();
    if (this.#before?.isConnected) this.#before.focus();
    const undoing = this.#isToUndo ? Promise.resolve(this.#work.undo?.()).catch(toastError) : Promise.resolve();
    // The caller reads the list again, which is right only after the undo has ended.
    undoing.then(() => this.#resolve(this.#total.done));
  }

  /** Escape first stops the work, then closes the dialog. @param {Event} event */
  #escape(event) {
    if (!this.#isRunning) return;
    event.preventDefault();
    this.#alive.abort();
  }

  #warn = (/** @type {Event} */ event) => {
    if (this.#isRunning) event.preventDefault();
  };

  /** @param {any[]} body @param {any[]} actions */
  #show(body, actions) {
    fill(this.#body, body);
    fill(this.#actions, actions);
    // Removing the focused button would move the focus to the page behind.
    if (!this.#dialog.contains(document.activeElement)) this.#heading.focus();
  }

  /** @param {string} label @param {() => unknown} run @param {string} [look] @returns {HTMLButtonElement} */
  #button(label, run, look = "") {
    return h("button", { type: "button", class: look, onclick: run }, label);
  }
}
