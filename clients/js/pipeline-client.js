/**
 * A client of the AI queue pipeline: uploads photos and receives every result, also after network failures. Events come
 * over a WebSocket; where a network blocks it, over server-sent events, or over long polling. For browsers and Node 22
 * or newer. Needs only the files beside it. The protocol is in contracts/rooms.asyncapi.json and
 * contracts/analyze-queue.openapi.json; the types for TypeScript are in pipeline-client.d.ts.
 *
 * Long because the public class has all methods of an application, and the state of its one connection.
 *
 * @typedef {import("./types.js").AssetProcessed} AssetProcessed
 * @typedef {import("./types.js").Receipt} Receipt
 * @typedef {import("./types.js").Asset} Asset
 *
 * @typedef {object} Own the client's own events, beside the frames of the service
 * @property {{room: string, serverTime: string}} connected
 * @property {{code: number, willReconnect: boolean, retryInMs: number | null}} disconnected code 1006: the connection
 *   broke or was never made; willReconnect: false after close(), and when the service refused for good
 * @property {{transport: TransportName}} transport the transport of events from now on
 * @property {Error} error the client gave up, or a function of the app failed
 *
 * @typedef {import("./types.js").Frames & Own} Events with `progress: true` also the steps before the result, with
 *   `operators: true` also the state of the service
 *
 * @typedef {import("./ladder.js").TransportName} TransportName
 * @typedef {import("./connection.js").Connection} AnyConnection
 * @typedef {import("./transports.js").Loss} Loss
 */

import { BROKEN, roleOf, TOO_MANY } from "./close-codes.js";
import { Connection } from "./connection.js";
import { Cursor } from "./cursor.js";
import { backoffMs } from "./delays.js";
import { Http, multipart, PipelineError, randomHex } from "./http.js";
import { Inbox } from "./inbox.js";
import { Ladder, probe, TIMES } from "./ladder.js";
import { Listeners } from "./listeners.js";
import { Tokens } from "./tokens.js";

export { PipelineError };

const STEPS = ["queued", "started", "retrying", "held", "progress", "corrected", "deleted"];
const EXTRAS = [...STEPS.map((step) => `asset_${step}`), "overview"];
const TOO_MANY_MS = 60_000;

export class PipelineClient {
  #url;
  /** @type {import("./http.js").Send} */ #send;
  #tokens;
  #http;
  #cursor;
  #ladder;
  #parts;
  #inbox;
  #listeners = new Listeners();

  // From connect() until close() or the end:
  /** @type {Promise<string> | null} */ #room = null;
  /** @type {{resolve(room: string): void, reject(error: unknown): void} | undefined} */ #waiting;
  /** @type {TransportName | null} */ #transport = null;
  #failures = 0; // attempts in a row
  #isTokenRetried = false;
  #isOriginReported = false;

  // State of one attempt and its connection; #end() clears it:
  #alive = new AbortController();
  /** @type {AnyConnection | null} */ #current = null;
  /** @type {AnyConnection | null} of the transport above, beside the one in use */ #trial = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} to connect, or to try the transport above */ #timer;

  /**
   * One client is for one user.
   * @param {object} options
   * @param {string} options.url of the service, e.g. "https://photos.example.com"
   * @param {string | (() => string | Promise<string>)} options.token a function is asked for each connection and when
   *   the token is about to expire, and returns a fresh one; with a string all ends when it expires
   * @param {string} [options.since] receive also events after this: `client.since` of an earlier client
   * @param {boolean} [options.progress] receive also the steps before the result; missed ones are not repeated
   * @param {boolean} [options.operators] receive also the state of the service: needs an operator's token; not over long
   *   polling
   * @param {Partial<import("./ladder.js").Times>} [options.times] when a transport counts as broken
   * @param {new (url: string, protocols: string[]) => WebSocket} [options.WebSocket]
   * @param {typeof globalThis.fetch} [options.fetch]
   */
  constructor({ url, token, since, progress = false, operators = false, times, WebSocket, fetch = globalThis.fetch }) {
    this.#url = new URL(url).href.replace(/\/+$/, "");
    this.#send = (address, sending) => fetch(address, sending); // never as a method of ours: browsers forbid it
    this.#tokens = new Tokens(token);
    this.#http = new Http(this.#url, this.#send, this.#tokens);
    this.#cursor = new Cursor(since);
    const list = (/** @type {Record<string, unknown>} */ query, /** @type {object} */ options) =>
      this.#assets(query, options);
    this.#inbox = new Inbox(this.#cursor, list, (event) => this.#listeners.emit("asset_processed", event));
    const allTimes = { ...TIMES, ...times };
    const extras = [...(progress ? ["progress"] : []), ...(operators ? ["operators"] : [])];
    this.#ladder = new Ladder(allTimes, () => probe(this.#url, this.#send));
    this.#parts = {
      url: this.#url,
      tokens: this.#tokens,
      cursor: this.#cursor,
      send: this.#send,
      list,
      WebSocket,
      events: extras.length ? extras : undefined,
      times: allTimes,
    };
  }

  /** All events up to this time have been delivered; a later client can continue from it. */
  get since() {
    return this.#cursor.since;
  }

  /** The present or last transport: "socket", "sse" or "poll"; null before the first connection. */
  get transport() {
    return this.#transport;
  }

  /**
   * Call the listener with each event of that name; return a function that ends it.
   * @template {keyof Events} Name
   * @param {Name} name
   * @param {(detail: Events[Name]) => unknown} listener
   */
  on(name, listener) {
    return this.#listeners.add(name, listener);
  }

  /**
   * Connect, and reconnect whenever the connection breaks, until close(). Resolves with the room at the first
   * `connected`; rejects when the server refuses for good or close() comes before.
   */
  connect() {
    if (this.#room) return this.#room;
    /** @type {Promise<string>} */
    const room = new Promise((resolve, reject) => (this.#waiting = { resolve, reject }));
    room.catch(() => {}); // the app need not await it: `error` reports the same
    this.#room = room;
    globalThis.addEventListener?.("online", this.#networkIsBack);
    globalThis.document?.addEventListener("visibilitychange", this.#pageIsSeen);
    this.#ladder.restart();
    this.#isOriginReported = false;
    this.#open();
    return room;
  }

  /** Close the connection and stop reconnecting. */
  close() {
    if (this.#room) this.#stop(1000, new PipelineError("The client was closed", "CLOSED", 0));
  }

  // the connection

  async #open() {
    this.#end();
    const { signal } = this.#alive;
    const reachability = await this.#ladder.settled();
    if (signal.aborted) return;
    if (reachability === "foreign") this.#reportOrigin();
    if (signal.aborted) return;
    this.#current = this.#connection(this.#ladder.name);
    this.#current.open();
  }

  /** @param {TransportName} name */
  #connection(name) {
    return new Connection(name, this.#parts, {
      entered: (connection, frame) => this.#enter(connection, frame),
      frame: (connection, frame) => connection === this.#current && this.#receive(frame),
      reached: (connection, timestamp) => connection === this.#current && this.#inbox.reached(timestamp),
      lost: (connection, loss) => (connection === this.#trial ? this.#planClimb() : this.#lose(connection, loss)),
      failed: (connection, error) => (connection === this.#trial ? this.#planClimb() : this.#fail(error)),
      silent: () => this.#checkForMissed(),
      troubled: (error) => this.#listeners.emit("error", error),
      catchUp: (signal, wait) => this.#inbox.read({ signal, tries: 1 }, wait).then(({ found }) => found),
    });
  }

  /** @param {AnyConnection} connection @param {{room: string, serverTime: string}} frame */
  #enter(connection, { room, serverTime }) {
    const isClimb = connection === this.#trial;
    if (isClimb) this.#switchTo(connection);
    this.#ladder.entered(connection.name);
    this.#failures = 0;
    // An upload may have set the cursor after this connection was opened without one.
    const isBehind = connection.since === undefined && this.#cursor.since !== undefined;
    this.#cursor.begin(serverTime);
    this.#tokens.measure(serverTime);
    // The service accepts an expired token for some seconds, then closes with 4419: such a token does not count as good.
    if (this.#tokens.lifeMs(connection.token) > 0) this.#isTokenRetried = false;
    this.#planClimb();
    this.#waiting?.resolve(room);
    if (this.#transport !== connection.name) {
      this.#transport = connection.name;
      this.#listeners.emit("transport", { transport: connection.name });
    }
    if (!isClimb) this.#listeners.emit("connected", { room, serverTime });
    if (isBehind && connection.name !== "poll" && connection === this.#current) this.#resync();
  }

  /** @param {any} frame */
  #receive(frame) {
    if (frame.event === "asset_processed") this.#inbox.take(frame);
    else if (frame.event === "resync") this.#resync();
    else if (EXTRAS.includes(frame.event)) this.#listeners.emit(frame.event, frame);
  }

  async #resync() {
    const { signal } = this.#alive;
    try {
      await this.#inbox.resync();
    } catch (error) {
      if (!signal.aborted) this.#giveUp(1000, error);
    }
  }

  /** The connection has ended, or was not made. @param {AnyConnection} connection @param {Loss} loss */
  #lose(connection, { code, isMute = false, retryInMs, message }) {
    const role = roleOf(code);
    if (role === "token" && this.#tokens.canRenew && !this.#isTokenRetried) {
      this.#isTokenRetried = true;
      this.#reconnect(code, 0);
    } else if (role !== "reconnect") {
      const text = message ?? `The service refused (${code})`;
      this.#giveUp(code, new PipelineError(text, role === "token" ? "UNAUTHORIZED" : "REFUSED", code));
    } else {
      if (isMute || (code === BROKEN && !connection.isEntered)) this.#ladder.missed(isMute);
      const leastMs = code === TOO_MANY ? TOO_MANY_MS * (0.5 + Math.random() / 2) : 0;
      this.#reconnect(code, isMute ? 0 : Math.max(leastMs, retryInMs ?? backoffMs(this.#failures++)));
    }
  }

  /** @param {unknown} error before anything was sent */
  #fail(error) {
    // A token may be available later. An address that WebSocket refuses stays wrong.
    if (!(error instanceof PipelineError)) return this.#giveUp(BROKEN, error);
    this.#reconnect(BROKEN, backoffMs(this.#failures++));
    this.#listeners.emit("error", error);
  }

  /** @param {number} code @param {number} retryInMs */
  #reconnect(code, retryInMs) {
    this.#end();
    this.#setTimer(retryInMs, () => this.#open());
    this.#listeners.emit("disconnected", { code, willReconnect: true, retryInMs });
  }

  /** @param {number} code @param {unknown} error */
  #giveUp(code, error) {
    this.#stop(code, error);
    this.#listeners.emit("error", error);
  }

  /** @param {number} code @param {unknown} error rejects a promise of connect() that is still open */
  #stop(code, error) {
    this.#end();
    globalThis.removeEventListener?.("online", this.#networkIsBack);
    globalThis.document?.removeEventListener("visibilitychange", this.#pageIsSeen);
    this.#waiting?.reject(error);
    this.#room = null;
    this.#failures = 0;
    this.#isTokenRetried = false;
    this.#listeners.emit("disconnected", { code, willReconnect: false, retryInMs: null });
  }

  #end() {
    clearTimeout(this.#timer);
    this.#alive.abort();
    this.#alive = new AbortController();
    this.#inbox.forget();
    this.#current?.close();
    this.#trial?.close();
    this.#current = this.#trial = null;
  }

  #reportOrigin() {
    if (this.#isOriginReported) return;
    this.#isOriginReported = true;
    const message = `The service does not accept pages of ${location.origin}: add this origin to its ALLOWED_ORIGINS`;
    this.#listeners.emit("error", new PipelineError(message, "ORIGIN_NOT_ALLOWED", 0));
  }

  // A connection from before the outage may look open for minutes, and a page cannot send a ping.
  #networkIsBack = () => {
    this.#ladder.restart();
    this.#reconnect(BROKEN, 0);
  };

  // Browsers slow down the timers of hidden pages.
  #pageIsSeen = () => {
    if (document.visibilityState === "visible" && !this.#current) this.#open();
  };

  /** @param {number} ms @param {() => void} then */
  #setTimer(ms, then) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, ms);
  }

  // the transport above

  #planClimb() {
    this.#trial?.close();
    this.#trial = null;
    const { above } = this.#ladder;
    if (!above) return;
    this.#setTimer(this.#ladder.nextClimbMs(), () => {
      this.#ladder.tried();
      this.#trial = this.#connection(above);
      this.#trial.open();
    });
  }

  /** Events that the old connection had not delivered come again, since the cursor. @param {AnyConnection} connection */
  #switchTo(connection) {
    this.#inbox.forget();
    this.#current?.close();
    this.#current = connection;
    this.#trial = null;
  }

  /** After a long silence on a connection with invisible pings: read the list, and leave the connection if it missed any. */
  async #checkForMissed() {
    const connection = this.#current;
    try {
      if (await this.#inbox.hasMissed()) connection?.drop();
    } catch (error) {
      const isUnreachable = error instanceof PipelineError && error.status === 0;
      if (isUnreachable && connection === this.#current) this.#reconnect(BROKEN, 0);
    }
  }

  // over HTTP

  /**
   * Upload a photo. After network errors, 429, 502, 503 and 504 it is sent again with the same Idempotency-Key, so that
   * it is accepted once. After a limit of the user (429 with Retry-After) it waits, one upload after the other, without
   * an end. PipelineError when the service refuses it or cannot be reached.
   * @param {Blob} file
   * @param {object} options
   * @param {string} options.category one of the service's setting CATEGORIES
   * @param {string} [options.idempotencyKey] your own key also makes a repeat after a restart of the app safe
   * @param {import("./http.js").OnProgress} [options.onProgress] of the whole body; begins at 0 when it is sent again
   * @param {AbortSignal} [options.signal]
   * @param {number} [options.tries] how often it is sent at most, 429 with Retry-After apart; 5 by default, and 1 never waits
   * @returns {Promise<Receipt>}
   */
  upload(file, { category, idempotencyKey = randomHex(), onProgress, signal, tries }) {
    const headers = { "Idempotency-Key": idempotencyKey };
    const body = multipart(file, category);
    const send = onProgress && this.#http.sendWithProgress((...step) => this.#listeners.call(onProgress, step));
    // Its event may be sent before the first connection.
    const onDate = (/** @type {string} */ date) => this.#cursor.beginAt(date);
    return this.#http.request("POST", "/api/assets/analyze-queue", { headers, body, signal, send, tries, onDate });
  }

  /** @param {string} id @returns {Promise<Asset>} */
  asset(id) {
    return this.#http.request("GET", `/api/assets/${encodeURIComponent(id)}`);
  }

  /**
   * Correct fields, like { brand: "Adidas", model: null }: a text stays for good, null returns the field to the AI.
   * @param {string} id
   * @param {{ brand?: string | null, model?: string | null, colorway?: string | null }} values
   * @returns {Promise<Asset>}
   */
  correct(id, values) {
    const headers = { "Content-Type": "application/json" };
    return this.#http.request("PATCH", `/api/assets/${encodeURIComponent(id)}`, {
      headers,
      body: JSON.stringify(values),
    });
  }

  /** Cancel the job of an asset; 409 when it has ended. @param {string} id @returns {Promise<Asset>} */
  cancel(id) {
    return this.#http.request("POST", `/api/assets/${encodeURIComponent(id)}/cancel`);
  }

  /** Let the AI look at a failed or partial photo again; 409 for any other. @param {string} id @returns {Promise<Receipt>} */
  retry(id) {
    return this.#http.request("POST", `/api/assets/${encodeURIComponent(id)}/retry`);
  }

  /**
   * Delete an asset with its images; no error when it does not exist.
   * @param {string} id @param {{keepalive?: boolean}} [options] keepalive: also while the page is being closed
   * @returns {Promise<void>}
   */
  async remove(id, { keepalive } = {}) {
    try {
      await this.#http.request("DELETE", `/api/assets/${encodeURIComponent(id)}`, { keepalive });
    } catch (error) {
      if (!(error instanceof PipelineError && error.status === 404)) throw error;
    }
  }

  /**
   * A page of one's own assets: newest first; with finishedSince oldest first.
   * @param {import("./types.js").AssetQuery} [query]
   */
  assets(query = {}) {
    return this.#assets(query);
  }

  /**
   * @param {object} query @param {{signal?: AbortSignal, tries?: number}} [options]
   * @returns {Promise<import("./types.js").AssetPage>}
   */
  #assets(query, options) {
    const text = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) if (value != null) text.set(name, String(value));
    return this.#http.request("GET", `/api/assets?${text}`, options);
  }
}
