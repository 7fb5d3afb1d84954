/**
 * The photos that the service has not accepted yet, with their bytes: they outlive a reload, a crash, a dead battery.
 * In IndexedDB, or in memory where the browser gives none; each user has their own.
 *
 * @typedef {object} Unsent
 * @property {string} key of the upload: the Idempotency-Key, so that a photo is accepted once however often it is sent
 * @property {string} owner
 * @property {string} tab that sends it; another one does when that has gone
 * @property {string} name of the file
 * @property {string} category
 * @property {number} addedAt @property {number} order among those of the same moment
 * @property {Blob} blob
 * @property {string} [note] what was done to it: made smaller
 * @property {string} [refused] why it is not sent again by itself
 */

const DATABASE = "photo-queue";
const STORE = "unsent";
// Some browsers never answer; photos are sent all the same, and not kept.
const OPEN_MS = 3000;

export class Outbox {
  owner;
  /** @type {Map<string, Unsent>} what could not be kept */ #inMemory = new Map();
  /** @type {Promise<IDBDatabase | null> | undefined} */ #opened;

  /** @param {string} owner */
  constructor(owner) {
    this.owner = owner;
    // A page that the browser keeps for "back" must not keep the database from others.
    globalThis.addEventListener?.("pagehide", () => this.close());
  }

  /** Let go of the database; it is opened anew when something is asked of it. */
  close() {
    this.#opened?.then((database) => database?.close());
    this.#opened = undefined;
  }

  /** The first to be sent first. @returns {Promise<Unsent[]>} */
  async all() {
    const kept = await this.#ask("readonly", (store) => store.index("owner").getAll(this.owner));
    const all = [...(kept ?? []), ...this.#inMemory.values()];
    return all.sort((a, b) => a.addedAt - b.addedAt || a.order - b.order);
  }

  /** @param {string} key @returns {Promise<Unsent | undefined>} */
  async get(key) {
    return this.#inMemory.get(key) ?? (await this.#ask("readonly", (store) => store.get(key)));
  }

  /** Whether it outlives this page. @param {Unsent} unsent @returns {Promise<boolean>} */
  async put(unsent) {
    const isKept = (await this.#ask("readwrite", (store) => store.put(unsent))) !== undefined;
    if (isKept) this.#inMemory.delete(unsent.key);
    else this.#inMemory.set(unsent.key, unsent);
    return isKept;
  }

  /** @param {string} key */
  async delete(key) {
    this.#inMemory.delete(key);
    await this.#ask("readwrite", (store) => store.delete(key));
  }

  /** Forget all photos of this user. */
  async clear() {
    for (const { key } of await this.all()) await this.delete(key);
  }

  /**
   * Resolves once the change is on disk; with undefined when the browser keeps nothing, or has no room.
   * @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest} ask @returns {Promise<any>}
   */
  async #ask(mode, ask) {
    this.#opened ??= open();
    const database = await this.#opened;
    if (!database) return undefined;
    try {
      const transaction = database.transaction(STORE, mode);
      const request = ask(transaction.objectStore(STORE));
      await new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onabort = transaction.onerror = () => reject(transaction.error);
      });
      return request.result;
    } catch (/** @type {any} */ error) {
      // Closed by the browser, as happens to a page that slept: the next one opens it anew.
      if (error?.name === "InvalidStateError") this.#opened = undefined;
      return undefined;
    }
  }
}

/** Null when there is none, or the browser does not say within seconds. @returns {Promise<IDBDatabase | null>} */
function open() {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(null), OPEN_MS);
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () =>
        request.result.createObjectStore(STORE, { keyPath: "key" }).createIndex("owner", "owner");
      request.onsuccess = () => {
        clearTimeout(timer);
        request.result.onversionchange = () => request.result.close();
        resolve(request.result);
      };
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
}
