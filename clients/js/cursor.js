/**
 * How far the events are handed on, and which of the last ones were: one cursor for all transports.
 *
 * @typedef {import("./pipeline-client.js").AssetProcessed} AssetProcessed
 */

const OVERLAP_MS = 30_000; // an event may be told so much later than one with a later timestamp
const AHEAD_MS = 5_000; // more than this after the server's time is no instant of the service's clocks
const LONGEST_JOB_MS = 24 * 3_600_000; // an asset ends within JOB_MAX_AGE_SECONDS
const REMEMBERED = 5_000; // events, to drop repeats

export class Cursor {
  /** @type {string | undefined} */ #since;
  /** @type {{serverMs: number, atMs: number} | undefined} the server's time, and the monotonic clock then */ #measured;
  /** @type {Set<string>} */ #seen = new Set();

  /** @param {string} [since] */
  constructor(since) {
    this.#since = since;
  }

  /** All events up to this time have been handed on. */
  get since() {
    return this.#since;
  }

  /** Whether it is no instant of the service: from a clock that was wrong. */
  get isAhead() {
    return Date.parse(this.#since ?? "") > this.#nowMs() + AHEAD_MS;
  }

  /** Measure the server's clock; a client without a cursor begins here. @param {string} serverTime */
  begin(serverTime) {
    this.#measured = { serverMs: Date.parse(serverTime), atMs: performance.now() };
    this.#since ??= serverTime;
  }

  /** A client that has no cursor yet has not missed anything before this. @param {string} date as HTTP has it */
  beginAt(date) {
    if (!Number.isNaN(Date.parse(date))) this.#since ??= new Date(date).toISOString();
  }

  /** From when on the list is read to miss nothing. */
  get readFrom() {
    const fromMs = this.isAhead ? this.#nowMs() - LONGEST_JOB_MS : Date.parse(this.#since ?? "") - OVERLAP_MS;
    return new Date(fromMs).toISOString();
  }

  /** Never backward, and never past the server's own time. @param {string | undefined} timestamp */
  reach(timestamp) {
    if (timestamp === undefined) return;
    const isPast = Date.parse(timestamp) > this.#nowMs() + AHEAD_MS;
    const reached = isPast ? new Date(this.#nowMs()).toISOString() : timestamp;
    if (this.#since === undefined || Date.parse(reached) > Date.parse(this.#since)) this.#since = reached;
  }

  /** All that a cursor from a wrong clock had missed is read: begin at the server's time. */
  restart() {
    this.#since = new Date(this.#nowMs()).toISOString();
  }

  /** Whether the event is none of the last ones; it is from now on. @param {AssetProcessed} event */
  isNew({ assetId, timestamp }) {
    const key = `${assetId} ${timestamp}`;
    if (this.#seen.has(key)) return false;
    this.#seen.add(key);
    const [oldest] = this.#seen;
    if (this.#seen.size > REMEMBERED) this.#seen.delete(oldest);
    return true;
  }

  /** How long ago that was by the server's clock. @param {string} timestamp */
  ageMs(timestamp) {
    return this.#nowMs() - Date.parse(timestamp);
  }

  #nowMs() {
    return this.#measured ? this.#measured.serverMs + performance.now() - this.#measured.atMs : Infinity;
  }
}

/** @param {string | undefined} a @param {string} b */
export function later(a, b) {
  return a === undefined || Date.parse(b) > Date.parse(a) ? b : a;
}
