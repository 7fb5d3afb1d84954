/**
 * Sends photos, three at a time, with retries until the service has accepted or refused them.
 *
 * @typedef {import("./outbox.js").Unsent} Unsent
 *
 * @typedef {object} Step the state of a photo that is not accepted yet
 * @property {"waiting" | "preparing" | "sending" | "retrying" | "refused"} step
 * @property {number} [share] of its bytes that are sent
 * @property {string} [reason] why it is retried, or was refused
 * @property {number} [nextAt]
 * @property {boolean} [isLimit] it is retried because of a limit of the user
 *
 * @typedef {object} Callbacks
 * @property {(key: string, step: Step) => void} step
 * @property {(unsent: Unsent, receipt: import("../pipeline-client.js").Receipt) => void} accepted
 * @property {(key: string) => void} removed another tab has sent or removed it
 * @property {() => void} unauthorized
 */

import { backoffMs } from "../delays.js";
import { PipelineError } from "../http.js";
import { small } from "./picture.js";

const AT_ONCE = 3;
const STALLED_MS = 30_000; // without a sent byte
const ANSWER_MS = 120_000; // after all bytes were sent
const RECHECK_MS = 5000; // between checks whether another tab has sent it
const PROGRESS_MS = 200;
const CAREFUL_MS = 60_000; // after a limit, photos are sent one at a time for this long

export class Sender {
  #parts;
  #callbacks;
  /** @type {Map<string, Unsent>} in the order in which they are sent */ #waiting = new Map();
  /** @type {Map<string, AbortController>} */ #sending = new Map();
  /** @type {Map<string, number>} how often in a row each one failed */ #failures = new Map();
  /** @type {Map<string, ReturnType<typeof setTimeout>>} */ #timers = new Map();
  #failuresInARow = 0;
  #carefulUntil = 0;
  #isHalted = false;
  #stopping = new AbortController();
  #wakeLock = new WakeLock(this.#stopping.signal);

  /** @param {{client: import("../pipeline-client.js").PipelineClient, outbox: import("./outbox.js").Outbox, tabs: import("./tabs.js").Tabs, maxBytes: number}} parts @param {Callbacks} callbacks */
  constructor(parts, callbacks) {
    this.#parts = parts;
    this.#callbacks = callbacks;
  }

  /** @param {Unsent} unsent */
  add(unsent) {
    // A photo whose upload is just being stopped is sent again after that.
    if (this.#waiting.has(unsent.key) || this.#sending.get(unsent.key)?.signal.aborted === false) return;
    this.#waiting.set(unsent.key, unsent);
    this.#sendNext();
  }

  /** Stop sending it. @param {string} key */
  cancel(key) {
    this.#waiting.delete(key);
    this.#sending.get(key)?.abort();
    clearTimeout(this.#timers.get(key));
    this.#timers.delete(key);
  }

  /** The network is back: retry everything at once. */
  wake() {
    this.#failuresInARow = 0;
    for (const [key, timer] of this.#timers) {
      clearTimeout(timer);
      this.#timers.delete(key);
    }
    this.#sendNext();
  }

  stop() {
    this.#isHalted = true;
    for (const key of [...this.#waiting.keys(), ...this.#sending.keys()]) this.cancel(key);
    this.#wakeLock.setWanted(false);
    this.#stopping.abort();
  }

  #sendNext() {
    // While all uploads fail, or after a limit, only one photo at a time is tried.
    const isCareful = this.#failuresInARow >= AT_ONCE || Date.now() < this.#carefulUntil;
    const atOnce = isCareful ? 1 : AT_ONCE;
    for (const unsent of this.#waiting.values()) {
      if (this.#isHalted || !navigator.onLine || this.#sending.size >= atOnce) break;
      if (isCareful && this.#timers.size) break;
      if (!this.#timers.has(unsent.key) && !this.#sending.has(unsent.key)) this.#send(unsent);
    }
    this.#wakeLock.setWanted(this.#sending.size > 0);
  }

  /** @param {Unsent} unsent */
  async #send(unsent) {
    const { key } = unsent;
    const { outbox, tabs } = this.#parts;
    const stopping = new AbortController();
    this.#waiting.delete(key);
    this.#sending.set(key, stopping);
    try {
      const isHere = await tabs.alone(key, async () => {
        // A failed read does not mean that it is gone. To send it twice does no harm: the key is the same.
        const stored = await outbox.get(key).catch(() => unsent);
        if (stopping.signal.aborted) return;
        if (!stored) return this.#callbacks.removed(key);
        const receipt = await this.#upload(stored, stopping);
        await outbox.delete(key);
        this.#failuresInARow = 0;
        this.#callbacks.accepted(stored, receipt);
      });
      // Another tab is sending it: check whether that has succeeded.
      if (!isHere && !stopping.signal.aborted) this.#wait(unsent, RECHECK_MS);
    } catch (error) {
      if (!(stopping.signal.aborted && stopping.signal.reason?.name === "AbortError"))
        await this.#failed(unsent, error);
    } finally {
      this.#sending.delete(key);
      this.#sendNext();
    }
  }

  /** @param {Unsent} unsent @param {AbortController} stopping */
  async #upload(unsent, stopping) {
    const { key, category } = unsent;
    const blob = await this.#prepared(unsent, stopping.signal);
    /** @type {ReturnType<typeof setTimeout> | undefined} */ let timer;
    let reportedAt = 0;
    const watch = (/** @type {number} */ ms) => {
      clearTimeout(timer);
      timer = setTimeout(
        () => stopping.abort(new PipelineError("The connection does not respond", "NETWORK_ERROR", 0)),
        ms,
      );
    };
    const onProgress = (/** @type {number} */ sent, /** @type {number} */ total) => {
      watch(sent < total ? STALLED_MS : ANSWER_MS);
      if (sent < total && Date.now() - reportedAt < PROGRESS_MS) return;
      reportedAt = Date.now();
      this.#callbacks.step(key, { step: "sending", share: sent / total });
    };
    this.#callbacks.step(key, { step: "sending", share: 0 });
    watch(STALLED_MS);
    try {
      return await this.#parts.client.upload(blob, {
        category,
        idempotencyKey: key,
        onProgress,
        signal: stopping.signal,
        tries: 1,
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Make it small enough and store the result: the same key must always send the same bytes. @param {Unsent} unsent @param {AbortSignal} signal */
  async #prepared(unsent, signal) {
    if (unsent.note) return unsent.blob;
    const { maxBytes, outbox } = this.#parts;
    if (unsent.blob.size > maxBytes) this.#callbacks.step(unsent.key, { step: "preparing" });
    const blob = await small(unsent.blob, maxBytes).catch(() => {
      const most = Math.floor(maxBytes / 2 ** 20);
      const size = unsent.blob.size > maxBytes ? `It is larger than ${most} MB` : "It has too many pixels";
      throw new PipelineError(`${size}, and this browser cannot make it smaller`, "TOO_LARGE", 413);
    });
    signal.throwIfAborted();
    if (blob === unsent.blob) return blob;
    unsent.note = "Made smaller to send";
    unsent.blob = blob;
    await outbox.put(unsent);
    return blob;
  }

  /** @param {Unsent} unsent @param {any} error */
  async #failed(unsent, error) {
    const { key } = unsent;
    const { status = 0, message = String(error), retryAfterMs } = error ?? {};
    if (status === 401 && retryAfterMs === undefined) {
      this.#isHalted = true;
      this.#waiting.set(key, unsent);
      this.#callbacks.step(key, { step: "waiting" });
      return this.#callbacks.unauthorized();
    }
    const failures = (this.#failures.get(key) ?? 0) + 1;
    // The photo may be the cause of a 500, so it is retried only a few times.
    const isPassing = [0, 401, 408, 429, 502, 503, 504].includes(status) || (status === 500 && failures < 4);
    if (!isPassing) {
      const refused = { ...unsent, refused: message };
      await this.#parts.outbox.put(refused);
      return this.#callbacks.step(key, { step: "refused", reason: message });
    }
    const ms = retryAfterMs ?? backoffMs(failures);
    const nextAt = Date.now() + ms;
    const isLimit = status === 429;
    if (isLimit) this.#carefulUntil = nextAt + CAREFUL_MS;
    else {
      this.#failures.set(key, failures);
      this.#failuresInARow += 1;
    }
    this.#wait(unsent, ms);
    this.#callbacks.step(key, { step: "retrying", reason: message, nextAt, isLimit });
  }

  /** @param {Unsent} unsent @param {number} ms */
  #wait(unsent, ms) {
    const then = () => (this.#timers.delete(unsent.key), this.#sendNext());
    this.#waiting.set(unsent.key, unsent);
    this.#timers.set(unsent.key, setTimeout(then, ms));
  }
}

/** Keeps the screen on, so that a phone does not interrupt an upload. */
class WakeLock {
  #isWanted = false;
  /** @type {Promise<WakeLockSentinel | null> | null} */ #lock = null;

  /** @param {AbortSignal} signal the end */
  constructor(signal) {
    // The browser releases the wake lock when the page is hidden.
    const seen = () => document.visibilityState === "visible" && this.#isWanted && this.#acquire();
    document.addEventListener("visibilitychange", seen, { signal });
  }

  /** @param {boolean} isWanted */
  setWanted(isWanted) {
    if (isWanted === this.#isWanted) return;
    this.#isWanted = isWanted;
    if (isWanted) return this.#acquire();
    this.#lock?.then((lock) => lock?.release());
    this.#lock = null;
  }

  #acquire() {
    this.#lock = navigator.wakeLock?.request("screen").catch(() => null) ?? null;
  }
}
