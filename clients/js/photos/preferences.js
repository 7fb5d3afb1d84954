/** What the browser stores of a user's choices and of the service, so that the page is filled at once. */

const PREFIX = "photo-queue.";

export class Preferences {
  #owner;

  /** @param {string} [owner] the user and the service */
  constructor(owner = "") {
    this.#owner = owner;
  }

  /** @param {string} name @returns {string} "" when there is none */
  get(name) {
    try {
      return localStorage.getItem(`${PREFIX}${name} ${this.#owner}`) ?? "";
    } catch {
      return "";
    }
  }

  /** @param {string} name @param {string} value */
  set(name, value) {
    try {
      localStorage.setItem(`${PREFIX}${name} ${this.#owner}`, value);
    } catch {
      // Then the first category is chosen.
    }
  }
}
