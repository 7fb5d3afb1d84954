/**
 * The cursor: up to which time events have been delivered, and which were the last ones. Shared by all transports.
 *
 * @typedef {import("./pipeline-client.js").AssetProcessed} AssetProcessed
 */

const OVERLAP_MS = 30_000; // an event may arrive this long after one with a later timestamp
const AHEAD_MS = 5_000; // the clocks of the service's processes differ by less
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

  /** All events up to this time have been delivered. */
  get since() {
    return this.#since;
  }

  /** Whether the cursor is later than the service's time, because a clock was wrong. */
  get isAhead() {
    return Date.parse(this.#since ?? "") > this.#nowMs() + AHEAD_MS;
  }

  /** Store the service's time; a client without a cursor begins there. @param {string} serverTime */
  begin(serverTime) {
    this.#measured = { serverMs: Date.parse(serverTime), atMs: performance.now() };
    this.#since ??= serverTime;
  }

  /** A client without a cursor begins at this time: it has missed nothing before. @param {string} date of HTTP */
  beginAt(date) {
    if (!Number.isNaN(Date.parse(date))) this.#since ??= new Date(date).toISOString();
  }

  /** The list must be read since then to miss nothing. */
  get readFrom() {
    const fromMs = this.isAhead ? this.#nowMs() - LONGEST_JOB_MS : Date.parse(this.#since ?? "") - OVERLAP_MS;
    return new Date(fromMs).toISOString();
  }

  /** Advance; never back, and never past the service's own time. @param {string | undefined} timestamp */
  reach(timestamp) {
    if (timestamp === undefined) return;
    const isPast = Date.parse(timestamp) > this.#nowMs() + AHEAD_MS;
    const reached = isPast ? new Date(this.#nowMs()).toISOString() : timestamp;
    if (this.#since === undefined || Date.parse(reached) > Date.parse(this.#since)) this.#since = reached;
  }

  /** Begin at the service's time, after everything that a wrong cursor had missed was read. */
  restart() {
    this.#since = new Date(this.#nowMs()).toISOString();
  }

  /** Whether the event is new; remembers it. @param {AssetProcessed} event */
  isNew({ assetId, timestamp }) {
    const key = `${assetId} ${timestamp}`;
    if (this.#seen.has(key)) return false;
    this.#seen.add(key);
    const [oldest] = this.#seen;
    if (this.#seen.size > REMEMBERED) this.#seen.delete(oldest);
    return true;
  }

  /** How long ago that was, by the service's clock. @param {string} timestamp */
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
