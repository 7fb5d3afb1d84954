/**
 * The photos that the service has not accepted yet, with their bytes. They survive a reload, a crash, a dead battery: in
 * IndexedDB, or in memory where the browser has none. Each user has an outbox of their own.
 *
 * @typedef {object} Unsent
 * @property {string} key of the upload: the Idempotency-Key, so that a photo is accepted only once
 * @property {string} owner
 * @property {string} tab that sends it; after its end another tab does
 * @property {string} name of the file
 * @property {string} category
 * @property {number} addedAt @property {number} order among those of the same moment
 * @property {Blob} blob
 * @property {string} [note] how it was changed: made smaller
 * @property {string} [refused] why it is not retried automatically
 */

const DATABASE = "photo-queue";
const STORE = "unsent";
// Some browsers never answer: photos are sent then without being stored.
const OPEN_MS = 3000;
/** Photos of all users that are not stored, or cannot be. They last as long as the page, also while it is frozen. @type {Map<string, Unsent>} */
const inMemory = new Map();

export class Outbox {
  owner;
  /** @type {Promise<IDBDatabase | null> | undefined} */ #opened;
  #changing = 0;

  /** @param {string} owner */
  constructor(owner) {
    this.owner = owner;
    // A page in the back-forward cache must not block the database for other pages.
    globalThis.addEventListener?.("pagehide", () => this.close());
  }

  /** Close the database; the next access opens it again. */
  close() {
    this.#opened?.then((database) => database?.close());
    this.#opened = undefined;
  }

  /** All photos in the order of sending. @returns {Promise<Unsent[]>} */
  async all() {
    const stored = await this.#ask("readonly", (store) => store.index("owner").getAll(this.owner));
    const unstored = [...inMemory.values()].filter(({ owner }) => owner === this.owner);
    const all = new Map([...(stored?.result ?? []), ...unstored].map((unsent) => [unsent.key, unsent]));
    return [...all.values()].sort((a, b) => a.addedAt - b.addedAt || a.order - b.order);
  }

  /** Read a photo: undefined once it was sent or removed; throws when the browser does not answer. @param {string} key @returns {Promise<Unsent | undefined>} */
  async get(key) {
    if (inMemory.has(key)) return inMemory.get(key);
    const stored = await this.#ask("readonly", (store) => store.get(key));
    if (!stored) throw new Error("This browser cannot read the stored photo: reload the page");
    return stored.result;
  }

  /** Add photos in memory; `put` stores them. @param {Unsent[]} all */
  addInMemory(all) {
    for (const unsent of all) inMemory.set(unsent.key, unsent);
  }

  /** Whether the photo would be lost with the page. @param {string} key */
  isInMemory(key) {
    return inMemory.has(key);
  }

  /** Whether any photo, or the last change, would be lost. */
  get hasUnstored() {
    return this.#changing > 0 || [...inMemory.values()].some(({ owner }) => owner === this.owner);
  }

  /** Store a photo. Returns whether it survives this page. @param {Unsent} unsent @returns {Promise<boolean>} */
  async put(unsent) {
    const isStored = (await this.#ask("readwrite", (store) => store.put(unsent))) !== undefined;
    if (isStored) inMemory.delete(unsent.key);
    else inMemory.set(unsent.key, unsent);
    return isStored;
  }

  /** @param {string} key */
  async delete(key) {
    await this.take(key);
  }

  /** Delete a photo and return it; undefined when it does not exist. @param {string} key @returns {Promise<Unsent | undefined>} */
  async take(key) {
    const unstored = inMemory.get(key);
    inMemory.delete(key);
    const stored = await this.#ask("readwrite", (store) => {
      const found = store.get(key);
      store.delete(key);
      return found;
    });
    return unstored ?? stored?.result;
  }

  /** Delete all photos of this user. */
  async clear() {
    for (const { key } of await this.all()) await this.delete(key);
  }

  /**
   * Resolves once the change is on disk; with undefined when the browser stores nothing, or has no space.
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
      // The browser has closed the database, as it does for frozen pages: open it again.
      this.close();
      return this.#ask(mode, ask, tries - 1);
    } finally {
      this.#changing -= Number(isChange);
    }
  }
}

/** Open the database: null when there is none, or the browser does not answer within seconds. @returns {Promise<IDBDatabase | null>} */
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
