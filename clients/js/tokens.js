/** The token of the app: a string, or a function that returns a fresh one. */

import { PipelineError } from "./http.js";

export class Tokens {
  #given;
  #clockAheadMs = 0; // the service's clock minus ours, which may be wrong by hours
  /** @type {string | undefined} the newest */ newest;

  /** @param {string | (() => string | Promise<string>)} given */
  constructor(given) {
    this.#given = given;
  }

  /** Whether there can be another one. */
  get canRenew() {
    return typeof this.#given === "function";
  }

  /** @returns {Promise<string>} */
  async fresh() {
    try {
      const token = typeof this.#given === "function" ? await this.#given() : this.#given;
      if (typeof token !== "string") throw new TypeError("it returned no string");
      return (this.newest = token);
    } catch (cause) {
      const message = `The token function failed: ${cause instanceof Error ? cause.message : cause}`;
      throw new PipelineError(message, "TOKEN_UNAVAILABLE", 0, { cause });
    }
  }

  /** The newest token if it is valid for so long, otherwise a fresh one. @param {number} ms */
  async livingFor(ms) {
    return this.newest !== undefined && this.lifeMs(this.newest) > ms ? this.newest : this.fresh();
  }

  /** @param {string} serverTime */
  measure(serverTime) {
    this.#clockAheadMs = Date.parse(serverTime) - Date.now();
  }

  /** @param {string} token */
  lifeMs(token) {
    const { exp } = claimsOf(token);
    return typeof exp === "number" ? exp * 1000 - Date.now() - this.#clockAheadMs : Infinity;
  }
}

/** {} when the token cannot be read. @param {string} token @returns {Record<string, unknown>} */
export function claimsOf(token) {
  try {
    const bytes = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (letter) => letter.charCodeAt(0)))) ?? {};
  } catch {
    return {};
  }
}
