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
/** What is not kept yet, or cannot be, of all users: as long as the page lives, also while it sleeps. @type {Map<string, Unsent>} */
const inMemory = new Map();

export class Outbox {
  owner;
  /** @type {Promise<IDBDatabase | null> | undefined} */ #opened;
  #changing = 0;

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
    const here = [...inMemory.values()].filter(({ owner }) => owner === this.owner);
    const all = new Map([...(kept?.result ?? []), ...here].map((unsent) => [unsent.key, unsent]));
    return [...all.values()].sort((a, b) => a.addedAt - b.addedAt || a.order - b.order);
  }

  /** Undefined once it has been sent or removed; an Error when the browser does not say. @param {string} key @returns {Promise<Unsent | undefined>} */
  async get(key) {
    if (inMemory.has(key)) return inMemory.get(key);
    const kept = await this.#ask("readonly", (store) => store.get(key));
    if (!kept) throw new Error("This browser does not give the photo back: load the page again");
    return kept.result;
  }

  /** They are here from now on, though none of them is kept yet. @param {Unsent[]} all */
  hold(all) {
    for (const unsent of all) inMemory.set(unsent.key, unsent);
  }

  /** Whether it would go with the page. @param {string} key */
  isHeld(key) {
    return inMemory.has(key);
  }

  /** Whether any would, or what was changed last. */
  get holdsAny() {
    return this.#changing > 0 || [...inMemory.values()].some(({ owner }) => owner === this.owner);
  }

  /** Whether it outlives this page. @param {Unsent} unsent @returns {Promise<boolean>} */
  async put(unsent) {
    const isKept = (await this.#ask("readwrite", (store) => store.put(unsent))) !== undefined;
    if (isKept) inMemory.delete(unsent.key);
    else inMemory.set(unsent.key, unsent);
    return isKept;
  }

  /** @param {string} key */
  async delete(key) {
    await this.take(key);
  }

  /** Delete it and return what it was; undefined when it is not there. @param {string} key @returns {Promise<Unsent | undefined>} */
  async take(key) {
    const here = inMemory.get(key);
    inMemory.delete(key);
    const kept = await this.#ask("readwrite", (store) => {
      const found = store.get(key);
      store.delete(key);
      return found;
    });
    return here ?? kept?.result;
  }

  /** Forget all photos of this user. */
  async clear() {
    for (const { key } of await this.all()) await this.delete(key);
  }

  /**
   * Resolves once the change is on disk; with undefined when the browser keeps nothing, or has no room.
   * @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest} ask
   * @param {number} [tries] @returns {Promise<{result: any} | undefined>}
   */
  async #ask(mode, ask, tries = 2) {
    const isChange = mode === "readwrite";
    this.#changing += Number(isChange);
    try {
      this.#opened ??= open();
      const database = await this.#opened;
      if (!database) return undefined;
      const transaction = database.transaction(STORE, mode);
      const request = ask(transaction.objectStore(STORE));
      await new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onabort = transaction.onerror = () => reject(transaction.error);
      });
      return { result: request.result };
    } catch (/** @type {any} */ error) {
      if (error?.name === "QuotaExceededError" || tries < 2) return undefined;
      // Closed or lost by the browser, as happens to a page that slept: opened anew.
      this.close();
      return this.#ask(mode, ask, tries - 1);
    } finally {
      this.#changing -= Number(isChange);
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
