/**
 * All photos of the user that this page knows, newest first: unsent ones and those of the service. One photo is one
 * object from the chosen file to the result.
 *
 * @typedef {object} Photo
 * @property {string} id of its row, on this page only
 * @property {string} name of the file; "" for photos that were read from the service
 * @property {Blob | null} file while this tab has it
 * @property {Promise<string> | null} picture small picture of the file, once it was needed
 * @property {(import("./sender.js").Step & {key: string, category: string, isOffline?: boolean}) | null} unsent
 * @property {Record<string, any> | null} asset
 * @property {Record<string, any> | null} live asset.progress, updated by the frames
 * @property {string} note how it was changed
 * @property {boolean} isHidden it is being deleted; undo shows it again
 *
 * @typedef {object} Shown
 * @property {(photos: Photo[]) => void} prepend
 * @property {(photos: Photo[]) => void} append
 * @property {(photo: Photo) => void} update
 * @property {(photo: Photo) => void} remove
 */

/** Converts a frame to the form of asset.progress. @type {Record<string, (frame: any) => Record<string, any>>} */
const STEPS = {
  asset_queued: ({ position, etaSeconds }) => ({ state: "queued", position, etaSeconds }),
  asset_started: ({ attempt, provider }) => ({ state: "running", attempt, provider }),
  asset_retrying: ({ attempt, reason, nextAt }) => ({ state: "retrying", attempt, reason, nextAt }),
  asset_held: ({ reason, nextAt }) => ({ state: "held", reason, nextAt }),
};
const UNFINISHED = ["processing", "draft"];

export class Photos {
  #list;
  #rows = 0;
  #isOffline = false;
  /** @type {Map<string, Photo>} not sent yet, by key */ #unsent = new Map();
  /** @type {Map<string, Photo>} by asset */ #assets = new Map();
  /** @type {any[]} frames of photos that may be among those being sent */ #early = [];

  /** @param {Shown} list */
  constructor(list) {
    this.#list = list;
  }

  get unsent() {
    return this.#unsent.size;
  }

  /** @returns {Photo[]} */
  get all() {
    return [...this.#unsent.values(), ...this.#assets.values()];
  }

  /** @returns {string[]} ids of the assets that are being worked on */
  get unfinished() {
    return [...this.#assets].filter(([, { asset }]) => UNFINISHED.includes(asset?.status)).map(([id]) => id);
  }

  /** Creation time of the oldest photo here. */
  get oldest() {
    return this.#assets.size
      ? [...this.#assets.values()].reduce(
          (oldest, { asset }) => (asset?.createdAt < oldest ? asset?.createdAt : oldest),
          "9",
        )
      : "";
  }

  /** @param {string} assetId */
  find(assetId) {
    return this.#assets.get(assetId);
  }

  /** Photos of the outbox, the first one on top. @param {import("./outbox.js").Unsent[]} all */
  addUnsent(all) {
    const added = all
      .filter(({ key }) => !this.#unsent.has(key))
      .map((unsent) => this.#make(unsent.name, unsent.blob, unsent));
    for (const photo of added) this.#unsent.set(/** @type {any} */ (photo.unsent).key, photo);
    this.#list.prepend(added);
  }

  /** @param {string} key */
  isToSend(key) {
    return this.#unsent.get(key)?.isHidden === false;
  }

  /** @param {string} key @param {Partial<NonNullable<Photo["unsent"]>>} step */
  step(key, step) {
    const photo = this.#unsent.get(key);
    if (!photo?.unsent) return;
    const { category, isOffline } = photo.unsent;
    photo.unsent = /** @type {any} */ ({ key, category, isOffline, ...step });
    this.#list.update(photo);
  }

  /** @param {boolean} isOffline */
  offline(isOffline) {
    this.#isOffline = isOffline;
    for (const photo of this.#unsent.values()) {
      if (!photo.unsent) continue;
      photo.unsent.isOffline = isOffline;
      this.#list.update(photo);
    }
  }

  /**
   * The service has accepted the photo. Returns earlier frames of it and, when no upload is left, earlier frames of
   * assets that were not sent from here.
   * @param {string} key @param {string} assetId @param {string} [note] @returns {any[]}
   */
  accepted(key, assetId, note = "") {
    const photo = this.#unsent.get(key);
    if (photo) this.#becomes(photo, key, assetId, note);
    const early = this.#early.filter((frame) => frame.assetId === assetId);
    this.#early = this.#early.filter((frame) => frame.assetId !== assetId);
    return this.isSending ? early : [...early, ...this.#early.splice(0)];
  }

  /** @param {Photo} photo @param {string} key @param {string} assetId @param {string} note */
  #becomes(photo, key, assetId, note) {
    const known = this.#assets.get(assetId);
    const begun = {
      id: assetId,
      category: photo.unsent?.category,
      status: "processing",
      images: {},
      aiMetadata: {},
      createdAt: new Date().toISOString(),
    };
    this.#unsent.delete(key);
    if (known) this.#list.remove(known);
    Object.assign(photo, {
      asset: known?.asset ?? begun,
      live: known?.live ?? { state: "queued" },
      note,
      unsent: null,
    });
    if (photo.picture) photo.file = null;
    this.#assets.set(assetId, photo);
    this.#list.update(photo);
  }

  get isSending() {
    return [...this.#unsent.values()].some(({ unsent }) => unsent?.step === "sending");
  }

  /** Another tab has sent or removed it. @param {string} key */
  forget(key) {
    const photo = this.#unsent.get(key);
    if (!photo) return;
    this.#unsent.delete(key);
    photo.isHidden = true;
    this.#list.remove(photo);
  }

  /** Remove all unsent photos. */
  forgetUnsent() {
    for (const key of [...this.#unsent.keys()]) this.forget(key);
  }

  /** The photo is analyzed again. @param {Photo} photo */
  restart(photo) {
    photo.asset = { ...photo.asset, status: "processing", finishedAt: null };
    photo.live = { state: "queued" };
    this.#list.update(photo);
  }

  /** Add assets of the service; update known ones. @param {any[]} assets newest first @param {"prepend" | "append"} where new ones are added */
  addAssets(assets, where) {
    const added = [];
    for (const asset of assets) {
      const known = this.#assets.get(asset.id);
      if (known) this.update(asset);
      else added.push(this.#make("", null, null, asset));
    }
    for (const photo of added) this.#assets.set(photo.asset?.id, photo);
    if (added.length) this.#list[where](added);
  }

  /** @param {any} asset */
  update(asset) {
    const photo = this.#assets.get(asset.id);
    if (!photo) return;
    // An answer that is older than the event.
    const isOld =
      !UNFINISHED.includes(photo.asset?.status) &&
      UNFINISHED.includes(asset.status) &&
      asset.updatedAt < (photo.asset?.finishedAt ?? "");
    if (isOld) return;
    photo.asset = asset;
    photo.live = asset.progress;
    this.#list.update(photo);
  }

  /** The asset was deleted. @param {string} assetId */
  deleted(assetId) {
    const photo = this.#assets.get(assetId);
    if (!photo) return;
    this.#assets.delete(assetId);
    photo.isHidden = true;
    this.#list.remove(photo);
  }

  /** Hide it, or show it again. @param {Photo} photo @param {boolean} isHidden */
  hide(photo, isHidden) {
    photo.isHidden = isHidden;
    this.#list.update(photo);
  }

  /**
   * Apply a frame of the service. Returns "finished" or "corrected" if it was that, "unknown" for a photo that is not
   * here and not being sent.
   * @param {any} frame
   */
  frame(frame) {
    const { event, assetId } = frame;
    const photo = this.#assets.get(assetId);
    if (event === "asset_deleted") return this.deleted(assetId);
    if (!photo?.asset) {
      if (!this.isSending) return "unknown";
      this.#early.push(frame);
      return;
    }
    if (event === "asset_processed" || event === "asset_corrected") {
      const { status, aiMetadata = {}, error = null, timestamp, fields } = frame;
      photo.asset = { ...photo.asset, status, aiMetadata: { ...photo.asset.aiMetadata, ...known(aiMetadata), error } };
      if (fields)
        photo.asset.corrections = Object.fromEntries(fields.map((/** @type {string} */ field) => [field, {}]));
      if (timestamp) photo.asset.finishedAt = timestamp;
      if (!UNFINISHED.includes(status)) photo.live = null;
      this.#list.update(photo);
      return event === "asset_processed" ? "finished" : "corrected";
    }
    if (!UNFINISHED.includes(photo.asset.status)) return "restarted";
    if (event === "asset_progress") photo.live = { ...photo.live, state: "running", share: frame.share };
    else if (STEPS[event]) photo.live = STEPS[event](frame);
    this.#list.update(photo);
  }

  /** @param {string} name @param {Blob | null} file @param {import("./outbox.js").Unsent | null} unsent @param {any} [asset] @returns {Photo} */
  #make(name, file, unsent, asset = null) {
    this.#rows += 1;
    const step = unsent && this.#firstStep(unsent);
    return {
      id: `photo-${this.#rows}`,
      name,
      file,
      picture: null,
      unsent: step,
      asset,
      live: asset?.progress ?? null,
      note: unsent?.note ?? "",
      isHidden: false,
    };
  }

  /** @param {import("./outbox.js").Unsent} unsent @returns {NonNullable<Photo["unsent"]>} */
  #firstStep({ key, category, refused }) {
    const step = refused ? /** @type {const} */ ("refused") : /** @type {const} */ ("waiting");
    return { key, category, step, reason: refused, isOffline: this.#isOffline };
  }
}

/** Events have "" where an asset has null. @param {Record<string, any>} metadata */
function known(metadata) {
  return Object.fromEntries(Object.entries(metadata).map(([field, result]) => [field, result?.value ? result : null]));
}
