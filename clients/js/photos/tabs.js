/** The other tabs of the same user: messages between them, and locks for work that only one tab may do. */

import { randomHex } from "../http.js";

export class Tabs {
  id = randomHex();
  #channel;
  #name;
  #closing = new AbortController();
  /** @type {Set<string>} tabs whose end is watched */ #watched = new Set();

  /** @param {string} owner @param {(message: any) => void} onMessage */
  constructor(owner, onMessage) {
    this.#name = `photo-queue ${owner}`;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => onMessage(data);
    // Locked as long as this tab lives: other tabs wait for the lock to notice its end.
    this.#lock(`tab ${this.id}`, {}, () => new Promise((end) => this.#closing.signal.addEventListener("abort", end)));
  }

  /** @param {object} message to all other tabs */
  broadcast(message) {
    if (!this.#closing.signal.aborted) this.#channel.postMessage(message);
  }

  /** Call once that tab has been closed, has crashed or has been left. @param {string} id @param {() => void} then */
  whenClosed(id, then) {
    if (id === this.id || this.#watched.has(id)) return;
    this.#watched.add(id);
    // Without locks (pages over plain http) the end is unknown; the key still ensures that a photo is accepted once.
    if (!navigator.locks) return then();
    this.#lock(`tab ${id}`, { mode: "shared" }, async () => {
      this.#watched.delete(id);
      then();
    });
  }

  /** Do it unless another tab is doing it. Returns whether it was done here. @param {string} name @param {() => Promise<void>} act */
  async alone(name, act) {
    if (!navigator.locks) return act().then(() => true);
    return navigator.locks.request(
      `${this.#name} ${name}`,
      { ifAvailable: true },
      async (lock) => lock !== null && act().then(() => true),
    );
  }

  close() {
    this.#closing.abort();
    this.#channel.close();
  }

  /** @param {string} name @param {LockOptions} options @param {() => Promise<unknown>} act */
  #lock(name, options, act) {
    const { signal } = this.#closing;
    navigator.locks?.request(`${this.#name} ${name}`, { ...options, signal }, act).catch(() => {});
  }
}
