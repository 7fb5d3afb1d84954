/**
 * Who is using the page: takes the token of a link, of a login or a pasted one, keeps it for all tabs, prolongs it where
 * the service allows that, and tells when it has ended.
 *
 * @typedef {{token: string, userId: string, role: string | null, expiresAt: string}} Session
 */

import { backoffMs, sleep } from "./client/delays.js";
import { PipelineError, readEnvelope } from "./client/http.js";
import { claimsOf } from "./client/tokens.js";

const PROLONG_BEFORE_MS = 6 * 3600_000;
const LOOK_EVERY_MS = 60_000;
const TRIES = 5;

export class SessionKeeper extends EventTarget {
  #key;
  /** Whether the browser keeps it, for other tabs too. */ #isKept = false;
  /** @type {Session | null} */ current = null;

  /**
   * Fires `change` when somebody has signed in or out, in this tab or another, and before that `ended` when the service
   * does not take the token any more.
   * @param {string} name of the page
   */
  constructor(name) {
    super();
    this.#key = `pipeline.${name}.session`;
    addEventListener("storage", ({ key }) => key === this.#key && this.#take(this.#stored()));
    // A page that was left is told nothing meanwhile.
    addEventListener("pageshow", ({ persisted }) => persisted && this.#look());
    setInterval(() => this.#prolong(), LOOK_EVERY_MS);
  }

  /** Begin with the token in the address, if there is one that the service takes, or else with the session of before. */
  async begin() {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    // Out of the address at once: it must not stay in the history, a bookmark or a screenshot.
    if (given) history.replaceState(null, "", location.pathname + location.search);
    try {
      if (given) return await this.#signInByLink(given);
    } catch (error) {
      if (!this.#stored()) throw error;
    }
    this.#look();
    this.#prolong();
    return this.current;
  }

  /** @param {string} token */
  async #signInByLink(token) {
    for (let failures = 0; ;) {
      try {
        return await this.signIn(token);
      } catch (/** @type {any} */ error) {
        if (error.status === 401) throw new PipelineError("This link is no longer good.", error.code, 401);
        // It is out of the address already: it must not be lost to a dead spot.
        if (![0, 503].includes(error.status) || ++failures >= TRIES) throw error;
        await sleep(backoffMs(failures));
      }
    }
  }

  /** @param {string} token @returns {Promise<Session>} PipelineError when the service does not take it */
  async signIn(token) {
    const session = await ask("GET", token.trim());
    // A link is good for minutes; the session that is made of it lasts.
    const lasting = claimsOf(token).page ? await ask("POST", token.trim()) : session;
    this.#keep(lasting);
    return lasting;
  }

  signOut() {
    try {
      localStorage.removeItem(this.#key);
    } catch {
      // It was never kept.
    }
    this.#take(null);
  }

  /** For PipelineClient: the token of now. */
  token = () => {
    if (!this.current) throw new Error("Nobody is signed in");
    return this.current.token;
  };

  async #prolong() {
    const { current } = this;
    if (!current) return;
    const leftMs = Date.parse(current.expiresAt) - Date.now();
    const isOfPage = Boolean(claimsOf(current.token).page);
    if (leftMs > (isOfPage ? PROLONG_BEFORE_MS : 0)) return;
    try {
      // The clock here may be wrong by hours: whether the session has ended is for the service to say.
      const next = await ask(isOfPage ? "POST" : "GET", current.token);
      if (isOfPage && this.current === current) this.#keep(next);
    } catch (/** @type {any} */ error) {
      if (error.status !== 401 || error.retryAfterMs !== undefined || this.current !== current) return;
      this.dispatchEvent(new Event("ended"));
      this.signOut();
    }
  }

  /** @param {Session} session */
  #keep(session) {
    try {
      localStorage.setItem(this.#key, JSON.stringify(session));
      this.#isKept = true;
    } catch {
      // A browser that keeps nothing: it holds for this page.
    }
    this.#take(session);
  }

  /** @returns {Session | null} */
  #stored() {
    try {
      const session = JSON.parse(localStorage.getItem(this.#key) ?? "null");
      this.#isKept ||= session !== null;
      return session;
    } catch {
      return null;
    }
  }

  /** Take what is kept. A browser that keeps nothing has forgotten who is signed in here. */
  #look() {
    const stored = this.#stored();
    if (this.#isKept || !this.current) this.#take(stored);
  }

  /** @param {Session | null} session */
  #take(session) {
    if (session?.token === this.current?.token) return;
    this.current = session;
    this.dispatchEvent(new Event("change"));
  }
}

/** @param {"GET" | "POST"} method @param {string} token @returns {Promise<Session>} */
async function ask(method, token) {
  let response;
  try {
    response = await fetch("/api/session", { method, headers: { Authorization: `Bearer ${token}` } });
  } catch (cause) {
    throw new PipelineError("The service cannot be reached", "NETWORK_ERROR", 0, { cause });
  }
  return readEnvelope(response);
}
