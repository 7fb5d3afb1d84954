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
  /** @type {Session | null} */ current = null;

  /** Fires `change` when somebody has signed in or out, in this tab or another. @param {string} name of the page */
  constructor(name) {
    super();
    this.#key = `pipeline.${name}.session`;
    addEventListener("storage", ({ key }) => key === this.#key && this.#take(this.#stored()));
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
    this.#take(this.#stored());
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
    localStorage.removeItem(this.#key);
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
    if (claimsOf(current.token).page && leftMs > 0 && leftMs < PROLONG_BEFORE_MS)
      await ask("POST", current.token).then(
        (next) => this.#keep(next),
        () => {},
      );
    if (leftMs <= 0 && this.current === current) this.signOut();
  }

  /** @param {Session} session */
  #keep(session) {
    localStorage.setItem(this.#key, JSON.stringify(session));
    this.#take(session);
  }

  /** @returns {Session | null} */
  #stored() {
    try {
      const session = JSON.parse(localStorage.getItem(this.#key) ?? "null");
      return session && Date.parse(session.expiresAt) > Date.now() ? session : null;
    } catch {
      return null;
    }
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
