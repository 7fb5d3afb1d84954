/**
 * The present state of the service: from the room `operators` over a socket, or, without a socket, from GET
 * /api/queue/overview every few seconds. While the tab is hidden there are no requests.
 *
 * Fires `overview` for each new one (in the property `overview`), and `state` when the state changes to
 * "connecting", "live" (over the socket), "polling", "away" (the service does not answer) or "hidden" (the tab is).
 */

import { backoffMs } from "./client/delays.js";
import { roleOf, TOO_MANY } from "./client/close-codes.js";
import { openSocket } from "./client/transports.js";
import { wordsOf } from "./api.js";
import { setServerTime } from "./parts/time.js";

const POLL_MS = 5_000;
const SILENCE_MS = 15_000; // the service sends one at least every 10 s
const TOO_MANY_MS = 60_000;
const MAX_FAILURES = 6; // more failures do not make the delay longer

export class Live extends EventTarget {
  /** @type {any} the last one */ overview = null;
  /** @type {string} why there is none, as text */ problem = "";
  /** @type {"connecting" | "live" | "polling" | "away" | "hidden"} */ state = "connecting";
  #api;
  #session;
  /** @type {import("./client/transports.js").Transport | null} */ #socket = null;
  #failures = 0;
  #isRefused = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #reconnection;
  /** @type {ReturnType<typeof setTimeout> | undefined} the next request, or the limit of silence */ #poll;
  #alive = new AbortController();

  /** @param {import("./api.js").Api} api @param {import("./session.js").SessionKeeper} session */
  constructor(api, session) {
    super();
    this.#api = api;
    this.#session = session;
  }

  start() {
    document.addEventListener("visibilitychange", this.#look);
    addEventListener("online", this.#again);
    addEventListener("offline", this.#cutOff);
    this.#look();
  }

  stop() {
    document.removeEventListener("visibilitychange", this.#look);
    removeEventListener("online", this.#again);
    removeEventListener("offline", this.#cutOff);
    this.#end();
  }

  /** Read it now, for example after a change. */
  refresh() {
    if (this.state !== "hidden") this.#ask();
  }

  #look = () => {
    this.#end();
    if (document.visibilityState === "hidden") return this.#become("hidden");
    this.#become("connecting");
    this.#again();
  };

  #again = () => {
    if (this.state === "hidden") return;
    this.#failures = 0;
    this.#connect();
    this.#ask();
  };

  // A socket on a dead connection looks open for a long time.
  #cutOff = () => {
    if (this.state === "hidden") return;
    this.#end();
    this.problem = "This device is offline";
    this.#become("away");
    this.#plan(POLL_MS);
  };

  #end() {
    this.#alive.abort();
    this.#alive = new AbortController();
    clearTimeout(this.#poll);
    clearTimeout(this.#reconnection);
    this.#socket?.close();
    this.#socket = null;
  }

  #connect() {
    clearTimeout(this.#reconnection);
    this.#socket?.close();
    this.#socket = null;
    if (this.#isRefused || !this.#session.current) return;
    this.#socket = openSocket(
      { url: location.origin, token: this.#session.token(), events: ["operators"], Socket: WebSocket },
      { frame: (frame) => this.#take(frame), activity() {}, reached() {}, lost: ({ code }) => this.#lose(code) },
    );
  }

  /** @param {any} frame */
  #take(frame) {
    if (frame?.event !== "overview") return;
    this.#failures = 0;
    this.#show(frame, "live");
    this.#plan(SILENCE_MS);
  }

  /** @param {number} code */
  #lose(code) {
    this.#socket = null;
    this.#isRefused = roleOf(code) === "final";
    // Another tab of this user has taken this connection: the two must not replace each other for ever.
    const leastMs = code === TOO_MANY ? TOO_MANY_MS : 500;
    const waitMs = leastMs + backoffMs(Math.min(++this.#failures, MAX_FAILURES));
    if (!this.#isRefused) this.#reconnection = setTimeout(() => this.#connect(), waitMs);
    this.#ask();
  }

  async #ask() {
    clearTimeout(this.#poll);
    const { signal } = this.#alive;
    try {
      const overview = await this.#api.get("/api/queue/overview", { signal });
      // An open socket delivers the next one without a request.
      if (!signal.aborted) this.#show(overview, this.state === "live" && this.#socket ? "live" : "polling");
    } catch (error) {
      if (signal.aborted) return;
      this.problem = wordsOf(error);
      this.#become("away");
    }
    this.#plan(this.state === "live" ? SILENCE_MS : POLL_MS);
  }

  /** @param {number} ms */
  #plan(ms) {
    clearTimeout(this.#poll);
    this.#poll = setTimeout(() => {
      // A socket that is silent for so long is dead.
      if (this.state === "live") {
        this.#become("polling");
        this.#connect();
      }
      this.#ask();
    }, ms);
  }

  /** @param {any} overview @param {"live" | "polling"} state */
  #show(overview, state) {
    setServerTime(overview.serverTime);
    this.overview = overview;
    this.problem = "";
    this.#become(state);
    this.dispatchEvent(new Event("overview"));
  }

  /** @param {Live["state"]} state */
  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}
