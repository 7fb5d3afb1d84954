/**
 * Keeps the photos on the page equal to those of the service: reads the first page at once and more while a person
 * scrolls, applies each frame, and reads missed changes after an outage.
 */

const PAGE = 50;
const LARGEST_PAGE = 100;
const CATCH_UP_PAGES = 3;
const SOON_MS = 300;
const FEW = 4; // up to so many are read one by one
const SENT_MS = 2000;
const AGAIN_MS = 3000;
const FRAMES = ["processed", "queued", "started", "retrying", "held", "progress", "corrected", "deleted"];

export class Library {
  #client;
  #photos;
  #told;
  /** @type {string | null} */ #cursor = null;
  #isLoading = false;
  /** @type {Promise<unknown> | null} */ #first = null;
  /** @type {Set<string>} ids of assets to read */ #wanted = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #isClosed = false;
  #isProblemTold = false;
  isLoaded = false;

  /**
   * @param {import("../pipeline-client.js").PipelineClient} client
   * @param {import("./photos.js").Photos} photos
   * @param {{changed: () => void, finished: (photo: import("./photos.js").Photo, frame: any) => void, problem: (error: any) => void, hasMore: (hasMore: boolean) => void}} told
   */
  constructor(client, photos, told) {
    this.#client = client;
    this.#photos = photos;
    this.#told = told;
    for (const name of FRAMES) client.on(/** @type {any} */ (`asset_${name}`), (frame) => this.take(frame));
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
        if (!this.#isProblemTold) this.#told.problem(error);
        this.#isProblemTold = true;
        if (error.status !== 401) setTimeout(() => this.#isClosed || this.start(), AGAIN_MS);
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
      this.#told.problem(error);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    } finally {
      this.#isLoading = false;
      this.#told.changed();
    }
  }

  /** After each connection: earlier frames may be missing. */
  async catchUp() {
    // Assets may have changed between an earlier read and this connection: read them again.
    await this.start();
    if (!this.isLoaded || this.#isClosed) return;
    try {
      const isComplete = await this.#readNew();
      if (isComplete) this.want(...this.#photos.unfinished);
    } catch (error) {
      this.#told.problem(error);
    }
    this.#told.changed();
  }

  /** Read these assets soon. @param {...string} ids */
  want(...ids) {
    if (this.#isClosed) return;
    for (const id of ids) this.#wanted.add(id);
    if (this.#wanted.size) this.#timer ??= setTimeout(() => this.#ask(), SOON_MS);
  }

  /** @param {string | null} cursor */
  async #page(cursor) {
    const { items, nextCursor } = await this.#client.assets({ limit: cursor ? LARGEST_PAGE : PAGE, cursor });
    if (this.#isClosed) return;
    this.#cursor = nextCursor;
    this.#told.hasMore(nextCursor !== null);
    this.#photos.addAssets(items, "append");
    this.#told.changed();
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
  take(frame) {
    const came = this.#photos.frame(frame);
    const photo = this.#photos.find(frame.assetId);
    if (came) this.want(frame.assetId);
    // It may be a photo that is being sent: its receipt will say so.
    else if (!photo && frame.event !== "asset_deleted")
      setTimeout(() => this.#photos.find(frame.assetId) ?? this.want(frame.assetId), SENT_MS);
    if (came === "finished" && photo) this.#told.finished(photo, frame);
    this.#told.changed();
  }

  async #ask() {
    const ids = new Set(this.#wanted);
    this.#wanted.clear();
    try {
      let cursor = null;
      for (let page = 0; ids.size > FEW && page < CATCH_UP_PAGES; page++) {
        const { items, nextCursor } = await this.#client.assets({ limit: LARGEST_PAGE, cursor });
        this.#put(items.filter(({ id }) => ids.delete(id)));
        if (!(cursor = nextCursor)) break;
      }
      for (const id of ids) {
        await this.#one(id);
        ids.delete(id);
      }
    } catch {
      // Read again with the next ones, or after the outage.
      for (const id of ids) this.#wanted.add(id);
    }
    this.#timer = undefined;
    if (this.#isClosed) return;
    if (this.#wanted.size) this.#timer = setTimeout(() => this.#ask(), AGAIN_MS);
    this.#told.changed();
  }

  /** @param {string} id */
  async #one(id) {
    try {
      this.#put([await this.#client.asset(id)]);
    } catch (/** @type {any} */ error) {
      if (error.status !== 404) throw error;
      this.#photos.deleted(id);
    }
  }

  /** @param {any[]} assets newest first; an old one comes later, with its page */
  #put(assets) {
    if (this.#isClosed) return;
    const oldest = this.#cursor ? this.#photos.oldest : "";
    this.#photos.addAssets(
      assets.filter(({ id, createdAt }) => this.#photos.find(id) || createdAt > oldest),
      "prepend",
    );
  }
}
