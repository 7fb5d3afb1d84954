/**
 * Delivers each event once: live ones, and those that are read from the list after an outage. Advances the cursor.
 *
 * @typedef {import("./pipeline-client.js").AssetProcessed} AssetProcessed
 * @typedef {{signal: AbortSignal, tries: number}} Options of a request
 * @typedef {(query: Record<string, unknown>, options: Options) => Promise<any>} List
 */

import { later } from "./cursor.js";

const LATE_MS = 10_000; // a live event comes faster, even on a connection without other events

export class Inbox {
  #cursor;
  #list;
  #handOn;
  // State of the present connection:
  #alive = new AbortController();
  #resyncs = 0; // asked for and not yet complete
  /** @type {string | undefined} the newest live timestamp while a resync is read */ #ahead;

  /** @param {import("./cursor.js").Cursor} cursor @param {List} list @param {(event: AssetProcessed) => void} handOn */
  constructor(cursor, list, handOn) {
    this.#cursor = cursor;
    this.#list = list;
    this.#handOn = handOn;
  }

  /** The connection has ended: stop its reads of the list. */
  forget() {
    this.#alive.abort();
    this.#alive = new AbortController();
    this.#ahead = undefined;
    this.#resyncs = 0;
  }

  /** Deliver a live event. @param {AssetProcessed} event */
  take(event) {
    this.reached(event.timestamp);
    if (this.#cursor.isNew(event)) this.#handOn(event);
  }

  /** The service has sent all events up to then, except those that a resync still reads. @param {string} timestamp */
  reached(timestamp) {
    if (this.#resyncs) this.#ahead = later(this.#ahead, timestamp);
    else this.#cursor.reach(timestamp);
  }

  /** Read missed events, oldest first. A second resync begins when this one has ended. */
  async resync() {
    if (++this.#resyncs > 1) return;
    const { signal } = this.#alive;
    for (let begun = 0; begun < this.#resyncs;) {
      begun = this.#resyncs;
      await this.read({ signal, tries: Infinity });
      if (signal.aborted) return;
    }
    this.#resyncs = 0;
    this.#cursor.reach(this.#ahead);
    this.#ahead = undefined;
  }

  /** Whether the list has an event that should have come before over the silent connection. */
  async hasMissed() {
    if (this.#resyncs) return false;
    const { signal } = this.#alive;
    const { late } = await this.read({ signal, tries: 1 });
    return late > 0 && !signal.aborted;
  }

  /**
   * Deliver all events of the list since shortly before the cursor.
   * found: how many were new; late: how many of those should have come before.
   * @param {Options} options @param {number} [wait] seconds that the service may wait for the first event
   */
  async read(options, wait) {
    const { isAhead, readFrom: finishedSince } = this.#cursor;
    const counts = { found: 0, late: 0 };
    let readAt;
    let cursor = null;
    do {
      const page = await this.#list({ finishedSince, limit: 100, cursor, wait: cursor ? null : wait }, options);
      readAt ??= page.serverTime;
      for (const asset of page.items) {
        // An asset with a new job has no event yet.
        if (!["active", "partial", "failed"].includes(asset.status)) continue;
        if (options.signal.aborted) return counts; // a listener has closed the client
        const event = toEvent(asset);
        this.#cursor.reach(event.timestamp);
        if (!this.#cursor.isNew(event)) continue;
        counts.found += 1;
        if (this.#cursor.ageMs(event.timestamp) > LATE_MS) counts.late += 1;
        this.#handOn(event);
      }
      cursor = page.nextCursor;
    } while (cursor);
    if (isAhead) this.#cursor.restart();
    else this.#cursor.reach(readAt);
    return counts;
  }
}

/** Build the event as pipeline/assets/events.py does. @param {Record<string, any>} asset a finished one @returns {AssetProcessed} */
function toEvent({ id, status, aiMetadata: { brand, model, colorway, error }, images, finishedAt }) {
  const missing = { value: "", confidence: 0 };
  /** @type {any} */
  const event = { event: "asset_processed", assetId: id, status, timestamp: finishedAt };
  if (status === "failed") return { ...event, error: error || "Processing failed" };
  event.aiMetadata = { brand: brand ?? missing, model: model ?? missing, ...(colorway && { colorway }) };
  if (images.processed?.url) event.processedImageUrl = images.processed.url;
  return event;
}
