/**
 * The signed-in user: accepts the token of a link or a login, or a pasted one, stores it for all tabs, renews it where
 * the service permits it, and reports its end.
 *
 * @typedef {{token: string, userId: string, role: string | null, expiresAt: string}} Session
 */

import { backoffMs, sleep } from "./client/delays.js";
import { PipelineError, readEnvelope } from "./client/http.js";
import { claimsOf } from "./client/tokens.js";

const RENEW_BEFORE_MS = 6 * 3600_000;
const CHECK_EVERY_MS = 60_000;
const TRIES = 5;

export class SessionKeeper extends EventTarget {
  #key;
  /** Whether the browser has stored it, also for other tabs. */ #isPersistent = false;
  /** @type {Session | null} */ current = null;

  /**
   * Fires `change` when a user has signed in or out, in this tab or another; before that `ended` when the service has
   * refused the token.
   * @param {string} name of the page
   */
  constructor(name) {
    super();
    this.#key = `pipeline.${name}.session`;
    addEventListener("storage", ({ key }) => key === this.#key && this.#take(this.#read()));
    // A page in the back-forward cache has missed changes.
    addEventListener("pageshow", ({ persisted }) => persisted && this.#update());
    setInterval(() => this.#renew(), CHECK_EVERY_MS);
  }

  /** Start with the token in the address, if the service accepts it, otherwise with the stored session. */
  async begin() {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    // Removed from the address at once: it must not stay in the history, a bookmark or a screenshot.
    if (given) history.replaceState(null, "", location.pathname + location.search);
    try {
      if (given) return await this.#signInByLink(given);
    } catch (error) {
      if (!this.#read()) throw error;
    }
    this.#update();
    this.#renew();
    return this.current;
  }

  /** @param {string} token */
  async #signInByLink(token) {
    for (let failures = 0; ;) {
      try {
        return await this.signIn(token);
      } catch (/** @type {any} */ error) {
        if (error.status === 401) throw new PipelineError("This link is no longer valid.", error.code, 401);
        // It was removed from the address already, so a network failure must not lose it.
        if (![0, 503].includes(error.status) || ++failures >= TRIES) throw error;
        await sleep(backoffMs(failures));
      }
    }
  }

  /** @param {string} token @returns {Promise<Session>} PipelineError when the service refuses it */
  async signIn(token) {
    const session = await ask("GET", token.trim());
    // A link is valid for minutes; the session that is made from it is valid longer.
    const lasting = claimsOf(token).page ? await ask("POST", token.trim()) : session;
    this.#store(lasting);
    return lasting;
  }

  signOut() {
    try {
      localStorage.removeItem(this.#key);
    } catch {
      // It was never stored.
    }
    this.#take(null);
  }

  /** The present token, for PipelineClient. */
  token = () => {
    if (!this.current) throw new Error("No user is signed in");
    return this.current.token;
  };

  async #renew() {
    const { current } = this;
    if (!current) return;
    const remainingMs = Date.parse(current.expiresAt) - Date.now();
    const isOfPage = Boolean(claimsOf(current.token).page);
    if (remainingMs > (isOfPage ? RENEW_BEFORE_MS : 0)) return;
    try {
      // The local clock may be wrong by hours: only the service decides whether the session has ended.
      const next = await ask(isOfPage ? "POST" : "GET", current.token);
      if (isOfPage && this.current === current) this.#store(next);
    } catch (/** @type {any} */ error) {
      if (error.status !== 401 || error.retryAfterMs !== undefined || this.current !== current) return;
      this.dispatchEvent(new Event("ended"));
      this.signOut();
    }
  }

  /** @param {Session} session */
  #store(session) {
    try {
      localStorage.setItem(this.#key, JSON.stringify(session));
      this.#isPersistent = true;
    } catch {
      // The browser stores nothing: the session is valid for this page only.
    }
    this.#take(session);
  }

  /** @returns {Session | null} */
  #read() {
    try {
      const session = JSON.parse(localStorage.getItem(this.#key) ?? "null");
      this.#isPersistent ||= session !== null;
      return session;
    } catch {
      return null;
    }
  }

  /** Read the stored session. Where the browser stores nothing, the user stays as it is. */
  #update() {
    const stored = this.#read();
    if (this.#isPersistent || !this.current) this.#take(stored);
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
