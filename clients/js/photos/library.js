/**
 * Keeps the photos on the page equal to those of the service: reads the first page at once and more while a person
 * scrolls, applies each frame, and reads missed changes after an outage.
 */

const PAGE = 50;
const LARGEST_PAGE = 100;
const CATCH_UP_PAGES = 3;
const COLLECT_MS = 300;
const FEW = 4; // up to so many are read one by one
const SENT_MS = 2000;
const RETRY_MS = 3000;
const FRAMES = ["processed", "queued", "started", "retrying", "held", "progress", "corrected", "deleted"];

export class Library {
  #client;
  #photos;
  #callbacks;
  /** @type {string | null} */ #cursor = null;
  #isLoading = false;
  /** @type {Promise<unknown> | null} */ #first = null;
  /** @type {Set<string>} ids of assets to read */ #toRead = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #isClosed = false;
  #isProblemReported = false;
  isLoaded = false;

  /**
   * @param {import("../pipeline-client.js").PipelineClient} client
   * @param {import("./photos.js").Photos} photos
   * @param {{changed: () => void, finished: (photo: import("./photos.js").Photo, frame: any) => void, problem: (error: any) => void, hasMore: (hasMore: boolean) => void}} callbacks
   */
  constructor(client, photos, callbacks) {
    this.#client = client;
    this.#photos = photos;
    this.#callbacks = callbacks;
    for (const name of FRAMES) client.on(/** @type {any} */ (`asset_${name}`), (frame) => this.apply(frame));
  }

  close() {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  /** Read the newest photos; retry until it succeeds. */
  start() {
    this.#first ??= this.#page(null).then(
      () => (this.isLoaded = true),
      (error) => {
        this.#first = null;
        // Reported once: it is tried again, and the line above the list shows that the connection is lost.
        if (!this.#isProblemReported) this.#callbacks.problem(error);
        this.#isProblemReported = true;
        if (error.status !== 401) setTimeout(() => this.#isClosed || this.start(), RETRY_MS);
      },
    );
    return this.#first;
  }

  /** Read the next page. */
  async more() {
    if (!this.isLoaded || !this.#cursor || this.#isLoading) return;
    this.#isLoading = true;
    try {
      await this.#page(this.#cursor);
    } catch (error) {
      this.#callbacks.problem(error);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    } finally {
      this.#isLoading = false;
      this.#callbacks.changed();
    }
  }

  /** After each connection: earlier frames may be missing. */
  async catchUp() {
    // Assets may have changed between an earlier read and this connection: read them again.
    await this.start();
    if (!this.isLoaded || this.#isClosed) return;
    try {
      const isComplete = await this.#readNew();
      if (isComplete) this.readSoon(...this.#photos.unfinished);
    } catch (error) {
      this.#callbacks.problem(error);
    }
    this.#callbacks.changed();
  }

  /** Read these assets soon. @param {...string} ids */
  readSoon(...ids) {
    if (this.#isClosed) return;
    for (const id of ids) this.#toRead.add(id);
    if (this.#toRead.size) this.#timer ??= setTimeout(() => this.#readAssets(), COLLECT_MS);
  }

  /** @param {string | null} cursor */
  async #page(cursor) {
    const { items, nextCursor } = await this.#client.assets({ limit: cursor ? LARGEST_PAGE : PAGE, cursor });
    if (this.#isClosed) return;
    this.#cursor = nextCursor;
    this.#callbacks.hasMore(nextCursor !== null);
    this.#photos.addAssets(items, "append");
    this.#callbacks.changed();
  }

  /** Read from the top until a known photo. Returns whether one was reached. */
  async #readNew() {
    let cursor = null;
    for (let page = 0; page < CATCH_UP_PAGES; page++) {
      const { items, nextCursor } = await this.#client.assets({ limit: page ? LARGEST_PAGE : PAGE, cursor });
      if (this.#isClosed) return false;
      const isReached = items.some(({ id }) => this.#photos.find(id)) || !nextCursor;
      if (!page) this.#forgetDeleted(items, nextCursor);
      this.#photos.addAssets(items, "prepend");
      if (isReached) return true;
      cursor = nextCursor;
    }
    return true;
  }

  /** Photos that should be in this part of the list and are not. @param {any[]} items @param {string | null} nextCursor */
  #forgetDeleted(items, nextCursor) {
    const listed = new Set(items.map(({ id }) => id));
    const oldest = nextCursor ? items.at(-1).createdAt : "";
    const newest = items[0]?.createdAt ?? "";
    for (const { asset } of this.#photos.all) {
      if (!asset?.updatedAt || listed.has(asset.id)) continue;
      if (asset.createdAt > oldest && (asset.createdAt < newest || !items.length)) this.#photos.deleted(asset.id);
    }
  }

  /** @param {any} frame */
  apply(frame) {
    const change = this.#photos.frame(frame);
    const photo = this.#photos.find(frame.assetId);
    if (change) this.readSoon(frame.assetId);
    // It may be a photo that is being sent: its receipt will say so.
    else if (!photo && frame.event !== "asset_deleted")
      setTimeout(() => this.#photos.find(frame.assetId) ?? this.readSoon(frame.assetId), SENT_MS);
    if (change === "finished" && photo) this.#callbacks.finished(photo, frame);
    this.#callbacks.changed();
  }

  async #readAssets() {
    const ids = new Set(this.#toRead);
    this.#toRead.clear();
    try {
      let cursor = null;
      for (let page = 0; ids.size > FEW && page < CATCH_UP_PAGES; page++) {
        const { items, nextCursor } = await this.#client.assets({ limit: LARGEST_PAGE, cursor });
        this.#addRead(items.filter(({ id }) => ids.delete(id)));
        if (!(cursor = nextCursor)) break;
      }
      for (const id of ids) {
        await this.#readAsset(id);
        ids.delete(id);
      }
    } catch {
      // Read again with the next ones, or after the outage.
      for (const id of ids) this.#toRead.add(id);
    }
    this.#timer = undefined;
    if (this.#isClosed) return;
    if (this.#toRead.size) this.#timer = setTimeout(() => this.#readAssets(), RETRY_MS);
    this.#callbacks.changed();
  }

  /** @param {string} id */
  async #readAsset(id) {
    try {
      this.#addRead([await this.#client.asset(id)]);
    } catch (/** @type {any} */ error) {
      if (error.status !== 404) throw error;
      this.#photos.deleted(id);
    }
  }

  /** @param {any[]} assets newest first; an old one comes later, with its page */
  #addRead(assets) {
    if (this.#isClosed) return;
    const oldest = this.#cursor ? this.#photos.oldest : "";
    this.#photos.addAssets(
      assets.filter(({ id, createdAt }) => this.#photos.find(id) || createdAt > oldest),
      "prepend",
    );
  }
}
