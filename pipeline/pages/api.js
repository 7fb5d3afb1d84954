/**
 * Requests of the console: each carries the token of the session, and every failure is a PipelineError with a text for
 * people. A refused token ends the session.
 *
 * @typedef {Record<string, string | number | boolean | null | undefined>} Query
 * @typedef {{query?: Query | URLSearchParams, signal?: AbortSignal}} Options
 */

import { PipelineError, readEnvelope } from "./client/http.js";

export { PipelineError };

const TIMEOUT_MS = 30_000;

export class Api {
  #session;

  /** @param {import("./session.js").SessionKeeper} session */
  constructor(session) {
    this.#session = session;
  }

  /** @param {string} path @param {Options} [options] @returns {Promise<any>} the data of the reply */
  get(path, options) {
    return this.#ask("GET", path, undefined, options);
  }

  /** @param {string} path @param {object} [body] @param {Options} [options] @returns {Promise<any>} */
  post(path, body, options) {
    return this.#ask("POST", path, body, options);
  }

  /** @param {string} path @param {Options} [options] @returns {Promise<any>} */
  delete(path, options) {
    return this.#ask("DELETE", path, undefined, options);
  }

  /** @param {string} method @param {string} path @param {object | undefined} body @param {Options} [options] */
  async #ask(method, path, body, { query, signal } = {}) {
    const timeout = AbortSignal.timeout(TIMEOUT_MS);
    let response;
    try {
      response = await fetch(withQuery(path, query), {
        method,
        headers: {
          Authorization: `Bearer ${this.#session.token()}`,
          ...(body && { "Content-Type": "application/json" }),
        },
        body: body && JSON.stringify(body),
        cache: "no-store",
        signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      });
      return await readEnvelope(response);
    } catch (/** @type {any} */ error) {
      throw this.#failure(error, signal);
    }
  }

  /** @param {any} error @param {AbortSignal} [signal] */
  #failure(error, signal) {
    signal?.throwIfAborted();
    if (!(error instanceof PipelineError)) {
      const isSlow = error?.name === "TimeoutError";
      return new PipelineError(
        isSlow ? "The service took too long" : "The service cannot be reached",
        "NETWORK_ERROR",
        0,
        { cause: error },
      );
    }
    if (error.status === 401 && error.retryAfterMs === undefined) this.#session.signOut();
    return error;
  }
}

/** Whether we aborted a request, for example because its view was closed. @param {any} error */
export function isAbort(error) {
  return error?.name === "AbortError";
}

/** The text of an error for people. @param {any} error @returns {string} */
export function wordsOf(error) {
  // A 403 with details is not about the role: this page's origin is not allowed.
  if (error?.status === 403 && !error.details?.length) return "Your role can view this, but not change it.";
  if (error?.status === 404 && error.code !== "NOT_FOUND") return "This version of the service does not have that.";
  const wrong = error?.details?.map((/** @type {any} */ { field, message }) => `${field}: ${message}`).join("; ");
  return wrong || `${error?.message ?? error}`;
}

/** An address with a query; empty values are left out. @param {string} path @param {Query | URLSearchParams} [query] */
export function withQuery(path, query = {}) {
  const text = new URLSearchParams();
  for (const [name, value] of query instanceof URLSearchParams ? query : Object.entries(query)) {
    if (value != null && value !== "") text.set(name, String(value));
  }
  return text.size ? `${path}?${text}` : path;
}
