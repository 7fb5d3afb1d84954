/**
 * All work for one user: stores, sends, follows and changes photos, and informs other tabs.
 *
 * @typedef {import("./photos.js").Photo} Photo
 * @typedef {{categories: string[], maxUploadBytes: number, providers: {name: string, sees: string | null}[]}} About
 *
 * @typedef {object} Callbacks
 * @property {() => void} changed the number of photos, or the connection
 * @property {(detail: {assetId: string, name: string, category: string}) => void} accepted
 * @property {(photo: Photo, frame: any) => void} finished
 * @property {() => void} unauthorized
 * @property {(text: string) => void} problem
 * @property {(hasMore: boolean) => void} hasMore
 */

import { PipelineClient } from "../pipeline-client.js";
import { randomHex } from "../http.js";
import { Library } from "./library.js";
import { Outbox } from "./outbox.js";
import { Photos } from "./photos.js";
import { kindOf } from "./picture.js";
import { Sender } from "./sender.js";
import { Tabs } from "./tabs.js";

export class Work {
  #callbacks;
  #tabs;
  #outbox;
  #sender;
  #library;
  #listening = new AbortController();
  #added = 0;
  /** Deleted photos by key, as long as undo is possible. @type {Map<string, Promise<import("./outbox.js").Unsent | undefined>>} */
  #removed = new Map();
  /** The state of the connection. @type {"connecting" | "connected" | "lost" | "offline"} */ connection =
    navigator.onLine ? "connecting" : "offline";

  /**
   * @param {{url: string, token: any, owner: string, about: About, list: import("./photos.js").Shown}} given
   * @param {Callbacks} callbacks
   */
  constructor({ url, token, owner, about, list }, callbacks) {
    this.#callbacks = callbacks;
    this.client = new PipelineClient({ url, token, progress: true });
    this.photos = new Photos(list);
    this.#outbox = new Outbox(owner);
    this.#tabs = new Tabs(owner, (message) => this.#apply(message));
    this.#library = new Library(this.client, this.photos, callbacks);
    const parts = { client: this.client, outbox: this.#outbox, tabs: this.#tabs, maxBytes: about.maxUploadBytes };
    this.#sender = new Sender(parts, {
      step: (key, step) => this.#share({ kind: "step", key, step }),
      accepted: (unsent, { assetId }) => {
        callbacks.accepted({ assetId, name: unsent.name, category: unsent.category });
        // Its result may have come before.
        this.#share({ kind: "accepted", key: unsent.key, assetId, note: unsent.note });
      },
      removed: (key) => this.#share({ kind: "removed", key }),
      unauthorized: callbacks.unauthorized,
    });
  }

  get isLoaded() {
    return this.#library.isLoaded;
  }

  get transport() {
    return this.client.transport;
  }

  /** Start: read unsent photos and those of the service, and connect. */
  async start() {
    const { signal } = this.#listening;
    addEventListener("online", () => this.#online(true), { signal });
    addEventListener("offline", () => this.#online(false), { signal });
    // Lets the browser ask before it closes the page.
    addEventListener("beforeunload", (event) => this.#outbox.hasUnstored && event.preventDefault(), { signal });
    this.client.on("connected", () => this.#connected());
    this.client.on("transport", () => this.#callbacks.changed());
    this.client.on(
      "disconnected",
      ({ willReconnect }) => willReconnect && this.#connection(navigator.onLine ? "lost" : "offline"),
    );
    this.client.on("error", (error) =>
      /** @type {any} */ (error).code === "UNAUTHORIZED"
        ? this.#callbacks.unauthorized()
        : this.#callbacks.problem(error.message),
    );
    this.photos.offline(!navigator.onLine);
    this.client.connect();
    this.#library.start();
    await this.#readOutbox();
  }

  /** @param {{clears?: boolean}} [options] clears: unsent photos are discarded */
  async close({ clears = false } = {}) {
    this.#listening.abort();
    this.#sender.stop();
    this.#library.close();
    this.client.close();
    if (clears) await this.#outbox.clear();
    if (clears) this.#tabs.broadcast({ kind: "cleared" });
    this.#tabs.close();
  }

  /** Send these files. Returns those that cannot be sent. @param {File[]} files @param {string} category */
  async add(files, category) {
    const addedAt = Date.now();
    /** @type {(string | null)[]} one after the other, because to open a file takes time */ const kinds = [];
    for (const file of files) kinds.push(await kindOf(file).catch(() => "unreadable"));
    const isPhoto = (/** @type {number} */ at) => kinds[at] && kinds[at] !== "unreadable";
    const photos = files.filter((_, at) => isPhoto(at));
    const refused = files.flatMap(({ name }, at) =>
      isPhoto(at) ? [] : [{ name: name || "The file", isReadable: !kinds[at] }],
    );
    const all = photos.map((blob) => {
      const given = { owner: this.#outbox.owner, tab: this.#tabs.id, name: blob.name ?? "", category, addedAt, blob };
      return { key: randomHex(), order: this.#added++, ...given };
    });
    this.#outbox.addInMemory(all);
    this.photos.addUnsent(all);
    this.#callbacks.changed();
    let isStored = true;
    for (const unsent of all) {
      // It may have been removed or sent in the meantime.
      if (!this.#outbox.isInMemory(unsent.key)) continue;
      isStored = (await this.#outbox.put(unsent)) && isStored;
      if (!this.#listening.signal.aborted && this.photos.isToSend(unsent.key)) this.#sender.add(unsent);
    }
    if (!isStored)
      this.#callbacks.problem(
        "This browser has no space to store the photos: leave this page open until they are sent.",
      );
    this.#tabs.broadcast({ kind: "added" });
    return refused;
  }

  /** @param {Photo} photo @param {Record<string, string | null>} values */
  async correct(photo, values) {
    this.photos.update(await this.client.correct(photo.asset?.id, values));
  }

  /** @param {Photo} photo */
  async cancel(photo) {
    await this.#request(photo, async () => this.photos.update(await this.client.cancel(photo.asset?.id)));
  }

  /** Retry: analyze it again, or send it again. @param {Photo} photo */
  async retry(photo) {
    if (photo.unsent) return this.#sendAgain(photo.unsent.key).catch((error) => this.#callbacks.problem(error.message));
    await this.#request(photo, async () => {
      await this.client.retry(photo.asset?.id);
      this.photos.restart(photo);
    });
  }

  /** @param {Photo} photo @param {boolean} isHidden hidden ones are not sent */
  async hide(photo, isHidden) {
    this.photos.hide(photo, isHidden);
    this.#callbacks.changed();
    const { key } = photo.unsent ?? {};
    if (key) await (isHidden ? this.#takeOut(key) : this.#putBack(photo, key));
  }

  /** Delete it from the outbox at once: a page that is being closed has no time for that. @param {string} key */
  async #takeOut(key) {
    this.#sender.cancel(key);
    // An undo may be running.
    if (!this.#removed.has(key))
      this.#removed.set(
        key,
        this.#outbox.take(key).catch(() => undefined),
      );
    await this.#removed.get(key);
  }

  /** @param {Photo} photo @param {string} key */
  async #putBack(photo, key) {
    const unsent = await this.#removed.get(key);
    if (photo.isHidden) return; // removed again in the meantime
    this.#removed.delete(key);
    if (!unsent) return this.#sendAgain(key).catch((error) => this.#callbacks.problem(error.message));
    await this.#outbox.put(unsent);
    if (photo.isHidden) return;
    // Another tab may not know it any more.
    this.photos.addUnsent([unsent]);
    this.#tabs.broadcast({ kind: "added" });
    if (unsent.refused) return;
    this.#share({ kind: "step", key, step: { step: "waiting" } });
    this.#sender.add(unsent);
  }

  /** @param {Photo} photo @param {boolean} [isLeaving] the page */
  async delete(photo, isLeaving = false) {
    if (photo.unsent) {
      this.#removed.delete(photo.unsent.key);
      await this.#outbox.delete(photo.unsent.key);
      return this.#share({ kind: "removed", key: photo.unsent.key });
    }
    try {
      await this.client.remove(photo.asset?.id, { keepalive: isLeaving });
      this.photos.deleted(photo.asset?.id);
    } catch (/** @type {any} */ error) {
      this.photos.hide(photo, false);
      this.#callbacks.problem(`The photo could not be deleted: ${error.message}`);
    }
    this.#callbacks.changed();
  }

  /** @param {Photo} photo */
  async fresh(photo) {
    const asset = await this.client.asset(photo.asset?.id);
    this.photos.update(asset);
    return asset;
  }

  more() {
    return this.#library.more();
  }

  /** @param {Photo} photo @param {() => Promise<void>} ask */
  async #request(photo, ask) {
    try {
      await ask();
    } catch (/** @type {any} */ error) {
      // The state has changed before the request: show the present one.
      if (error.status !== 409) this.#callbacks.problem(error.message);
      this.#library.readSoon(photo.asset?.id);
    }
    this.#callbacks.changed();
  }

  /** @param {string} key */
  async #sendAgain(key) {
    const unsent = await this.#outbox.get(key);
    if (!unsent) return this.#share({ kind: "removed", key });
    const { refused, ...next } = { ...unsent, tab: this.#tabs.id };
    await this.#outbox.put(next);
    this.#share({ kind: "step", key, step: { step: "waiting" } });
    this.#sender.add(next);
  }

  async #readOutbox() {
    const all = await this.#outbox.all();
    if (this.#listening.signal.aborted) return;
    this.photos.addUnsent(all);
    for (const { tab } of all) this.#tabs.whenClosed(tab, () => this.#adopt(tab));
    this.#callbacks.changed();
  }

  /** Send the photos of a tab that has ended. @param {string} tab */
  async #adopt(tab) {
    for (const unsent of await this.#outbox.all()) if (unsent.tab === tab && !unsent.refused) this.#sender.add(unsent);
  }

  /** Apply a message here and in the other tabs. @param {any} message */
  #share(message) {
    this.#tabs.broadcast(message);
    this.#apply(message);
  }

  /** @param {any} message */
  #apply({ kind, key, step, assetId, note }) {
    if (kind === "added") return void this.#readOutbox();
    if (kind === "step") this.photos.step(key, step);
    if (kind === "accepted") for (const frame of this.photos.accepted(key, assetId, note)) this.#library.apply(frame);
    if (kind === "removed") this.photos.forget(key);
    if (kind === "cleared") this.photos.forgetUnsent();
    this.#callbacks.changed();
  }

  #connected() {
    this.#connection("connected");
    this.#sender.wake();
    this.#library.catchUp();
  }

  /** @param {boolean} isOnline */
  #online(isOnline) {
    this.photos.offline(!isOnline);
    this.#connection(isOnline ? "connecting" : "offline");
    if (isOnline) this.#sender.wake();
  }

  /** @param {Work["connection"]} connection */
  #connection(connection) {
    this.connection = connection;
    this.#callbacks.changed();
  }
}
