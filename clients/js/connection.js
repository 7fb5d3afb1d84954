/**
 * One attempt to receive events, and the connection that it becomes.
 *
 * @typedef {import("./transports.js").Loss} Loss
 *
 * @typedef {object} Owner receives what happens
 * @property {(connection: Connection, frame: {room: string, serverTime: string}) => void} entered
 * @property {(connection: Connection, frame: any) => void} frame
 * @property {(connection: Connection, timestamp: string) => void} reached
 * @property {(connection: Connection, loss: Loss) => void} lost
 * @property {(connection: Connection, error: unknown) => void} failed before anything was sent
 * @property {(connection: Connection) => void} silent nothing has come for long, which may be normal
 * @property {(error: unknown) => void} troubled there is no fresh token; the connection stays
 * @property {(signal: AbortSignal, wait?: number) => Promise<number>} catchUp
 *
 * @typedef {object} Parts
 * @property {string} url
 * @property {import("./tokens.js").Tokens} tokens
 * @property {import("./cursor.js").Cursor} cursor
 * @property {import("./http.js").Send} send
 * @property {import("./inbox.js").List} list
 * @property {any} WebSocket
 * @property {string[]} [events]
 * @property {import("./ladder.js").Times} times
 */

import { BROKEN } from "./close-codes.js";
import { openPoll, openSocket, openStream } from "./transports.js";

const RENEW_MS = 60_000;
const MAX_TIMER_MS = 2 ** 31 - 1; // setTimeout fires at once for more

export class Connection {
  isEntered = false;
  token = "";
  /** @type {string | undefined} the service was asked for events since then */ since;
  #parts;
  #owner;
  #isClosed = false;
  #silenceMs;
  /** @type {import("./transports.js").Transport | undefined} */ #transport;
  /** @type {ReturnType<typeof setTimeout> | undefined} to be connected, then of silence */ #watch;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #renewal;
  /** @type {number | undefined} the retry delay that the service announced */ #retryInMs;
  /** @type {string | undefined} */ #refusal;

  /** @param {import("./ladder.js").TransportName} name @param {Parts} parts @param {Owner} owner */
  constructor(name, parts, owner) {
    this.name = name;
    this.#parts = parts;
    this.#owner = owner;
    this.#silenceMs = parts.times.silenceMs;
  }

  async open() {
    try {
      this.token = await this.#parts.tokens.fresh();
      if (this.#isClosed) return;
      this.#watch = setTimeout(() => this.#lose({ code: BROKEN, isMute: true }), this.#parts.times.connectMs);
      this.#transport = this.#begin();
    } catch (error) {
      if (!this.#isClosed) this.#owner.failed(this, error);
    }
  }

  /** The owner is not called after this. */
  close() {
    this.#isClosed = true;
    clearTimeout(this.#watch);
    clearTimeout(this.#renewal);
    this.#transport?.close();
  }

  /** End a connection that only looks open. */
  drop() {
    this.#lose({ code: BROKEN, isMute: true });
  }

  #begin() {
    const { url, send, list, cursor, events, WebSocket: Socket = globalThis.WebSocket } = this.#parts;
    this.since = cursor.since;
    const request = { url, token: this.token, since: this.since, events };
    const line = {
      frame: (/** @type {any} */ frame) => this.#take(frame),
      activity: () => this.#watchSilence(),
      reached: (/** @type {string} */ timestamp) => this.isEntered && this.#owner.reached(this, timestamp),
      lost: (/** @type {Loss} */ loss) => this.#lose(loss),
    };
    if (this.name === "socket") return openSocket({ ...request, Socket }, line);
    if (this.name === "sse") return openStream({ ...request, send }, line);
    return openPoll({ token: this.token, list, catchUp: this.#owner.catchUp }, line);
  }

  /** @param {any} frame */
  #take(frame) {
    if (this.#isClosed) return;
    this.#silenceMs = this.#parts.times.silenceMs;
    this.#watchSilence();
    if (frame?.event === "connected") this.#enter(frame);
    else if (frame?.event === "goodbye") this.#retryInMs = frame.retryInMs;
    else if (frame?.event === "error") this.#refusal = frame.message;
    else if (frame?.event === "close") this.#lose({ code: frame.code });
    else if (frame) this.#owner.frame(this, frame);
  }

  /** @param {{room: string, serverTime: string}} frame */
  #enter(frame) {
    this.isEntered = true;
    this.#watchSilence();
    this.#owner.entered(this, frame);
    if (this.#transport?.send) this.#planRenewal(this.token);
  }

  #watchSilence() {
    if (!this.isEntered || this.#isClosed) return;
    clearTimeout(this.#watch);
    if (this.name !== "poll") this.#watch = setTimeout(() => this.#silent(), this.#silenceMs);
  }

  #silent() {
    if (!this.#transport?.isBlind) return this.drop();
    this.#silenceMs = Math.min(2 * this.#silenceMs, this.#parts.times.longestSilenceMs);
    this.#watchSilence();
    this.#owner.silent(this);
  }

  /** @param {Loss} loss */
  #lose(loss) {
    if (this.#isClosed) return;
    this.close();
    const reason = { retryInMs: this.#retryInMs ?? loss.retryInMs, message: this.#refusal ?? loss.message };
    this.#owner.lost(this, { ...loss, ...reason });
  }

  // a fresh token goes out before the old one expires

  /** @param {string} token of the connection */
  #planRenewal(token) {
    clearTimeout(this.#renewal);
    if (this.#isClosed) return;
    const lifeMs = this.#parts.tokens.lifeMs(token);
    const waitMs = lifeMs - Math.min(RENEW_MS, lifeMs / 10);
    if (!this.#parts.tokens.canRenew || waitMs < 1000) return; // too late: close code 4419 will renew it
    const isLong = waitMs > MAX_TIMER_MS;
    const then = () => (isLong ? this.#planRenewal(token) : void this.#renew(token));
    this.#renewal = setTimeout(then, Math.min(waitMs, MAX_TIMER_MS));
  }

  /** @param {string} token the old one */
  async #renew(token) {
    try {
      token = await this.#parts.tokens.fresh();
      if (!this.#isClosed) this.#transport?.send?.({ auth: { token } });
    } catch (error) {
      if (!this.#isClosed) this.#owner.troubled(error);
    }
    this.#planRenewal(token);
  }
}
