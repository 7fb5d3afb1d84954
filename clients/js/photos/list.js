/**
 * The list on screen, of any length. Rows are grouped in blocks; only blocks near the screen have rows. Other blocks
 * keep their last height.
 *
 * @typedef {import("./photos.js").Photo} Photo
 * @typedef {{element: HTMLElement, update(): void, isInUse(): boolean, focus(): void}} Row
 * @typedef {{element: HTMLElement, photos: Photo[], rows: Map<Photo, Row> | null}} Block
 */

import { h } from "./elements.js";

const BLOCK_ROWS = 20;
const SEEN_BLOCKS = 2;
const NEAR = "1000px 0px";
const GUESSED_ROW_PX = 160;

export class PhotoList {
  element = h("div", { role: "list", class: "list", tabindex: "-1", "aria-label": "Photos" });
  /** @type {Block[]} */ #blocks = [];
  /** @type {Map<Photo, Block>} */ #blockOf = new Map();
  /** @type {Map<Element, Block>} */ #blockOfElement = new Map();
  #end = h("div", { class: "end" });
  #makeRow;
  #rowPx = GUESSED_ROW_PX;
  #near;
  #nearEnd;
  #isNumbering = false;
  /** Whether the service has more photos. */ hasMore = false;

  /** @param {(photo: Photo) => Row} makeRow @param {() => void} onNearEnd is called when more rows are needed */
  constructor(makeRow, onNearEnd) {
    this.#makeRow = makeRow;
    this.element.append(this.#end);
    this.#near = new IntersectionObserver((seen) => seen.forEach((each) => this.#seen(each)), { rootMargin: NEAR });
    this.#nearEnd = new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && onNearEnd(), {
      rootMargin: NEAR,
    });
    this.#nearEnd.observe(this.#end);
  }

  get size() {
    return this.#blockOf.size;
  }

  /** Ask for more rows if the end is still near. */
  checkEnd() {
    this.#nearEnd.unobserve(this.#end);
    this.#nearEnd.observe(this.#end);
  }

  /** @param {Photo[]} photos the first one on top */
  prepend(photos) {
    const [first] = this.#blocks;
    if (first && first.photos.length + photos.length <= BLOCK_ROWS) {
      first.photos.unshift(...photos);
      return photos.forEach((photo, at) => this.#insert(first, photo, at));
    }
    for (let from = 0, at = 0; from < photos.length; from += BLOCK_ROWS, at++) {
      const block = this.#addBlock(at);
      for (const photo of photos.slice(from, from + BLOCK_ROWS))
        this.#insert(block, photo, block.photos.push(photo) - 1);
    }
  }

  /** @param {Photo[]} photos */
  append(photos) {
    for (const photo of photos) {
      let block = this.#blocks.at(-1);
      if (!block || block.photos.length >= BLOCK_ROWS) block = this.#addBlock(this.#blocks.length);
      block.photos.push(photo);
      this.#insert(block, photo, block.photos.length - 1);
    }
  }

  /** @param {Photo} photo */
  update(photo) {
    this.#blockOf.get(photo)?.rows?.get(photo)?.update();
  }

  /** Update all rows, because times have changed. */
  updateAll() {
    for (const { rows } of this.#blocks) rows?.forEach((row) => row.update());
  }

  /** @param {Photo} photo */
  remove(photo) {
    const block = this.#blockOf.get(photo);
    if (!block) return;
    this.#blockOf.delete(photo);
    const row = block.rows?.get(photo);
    const hasFocus = row?.element.matches(":focus-within");
    const next = hasFocus ? this.nextTo(photo) : null;
    block.photos.splice(block.photos.indexOf(photo), 1);
    row?.element.remove();
    block.rows?.delete(photo);
    if (hasFocus) this.focus(next);
    this.#number();
    if (block.photos.length) return this.#setHeight(block);
    this.#near.unobserve(block.element);
    this.#blockOfElement.delete(block.element);
    this.#blocks.splice(this.#blocks.indexOf(block), 1);
    block.element.remove();
  }

  /** The photo below, otherwise the one above. @param {Photo} photo @returns {Photo | null} */
  nextTo(photo) {
    const all = this.#blocks.flatMap(({ photos }) => photos);
    const at = all.indexOf(photo);
    const isShown = (/** @type {Photo} */ { isHidden }) => !isHidden;
    return all.slice(at + 1).find(isShown) ?? all.slice(0, Math.max(0, at)).findLast(isShown) ?? null;
  }

  /** Focus that photo, or the list if the photo is gone or far away. @param {Photo | null} photo */
  focus(photo) {
    const row = photo && this.#blockOf.get(photo)?.rows?.get(photo);
    if (row && !photo.isHidden) row.focus();
    else this.element.focus({ preventScroll: true });
  }

  clear() {
    for (const photo of [...this.#blockOf.keys()]) this.remove(photo);
  }

  /** @param {number} at */
  #addBlock(at) {
    /** @type {Block} */
    const block = { element: h("div", { class: "block" }), photos: [], rows: null };
    (this.#blocks[at]?.element ?? this.#end).before(block.element);
    this.#blocks.splice(at, 0, block);
    this.#blockOfElement.set(block.element, block);
    // Rows on screen are built at once, so that nothing jumps when the observer fires.
    if (at < SEEN_BLOCKS) block.rows = new Map();
    this.#near.observe(block.element);
    return block;
  }

  /** @param {Block} block @param {Photo} photo @param {number} at */
  #insert(block, photo, at) {
    this.#blockOf.set(photo, block);
    if (block.rows) {
      const row = this.#makeRow(photo);
      block.rows.set(photo, row);
      block.element.insertBefore(row.element, block.element.children[at] ?? null);
    }
    this.#setHeight(block);
    this.#number();
  }

  /** @param {IntersectionObserverEntry} entry */
  #seen({ target, isIntersecting, boundingClientRect }) {
    const block = this.#blockOfElement.get(target);
    if (!block) return;
    if (isIntersecting) return this.#fill(block);
    if (!block.rows || [...block.rows.values()].some((row) => row.isInUse())) return;
    if (boundingClientRect.height && block.photos.length) this.#rowPx = boundingClientRect.height / block.photos.length;
    block.rows = null;
    block.element.replaceChildren();
    this.#setHeight(block, boundingClientRect.height);
  }

  /** @param {Block} block */
  #fill(block) {
    if (block.rows) return;
    block.rows = new Map(block.photos.map((photo) => [photo, this.#makeRow(photo)]));
    block.element.replaceChildren(...[...block.rows.values()].map(({ element }) => element));
    this.#setHeight(block);
    this.#number();
  }

  /** @param {Block} block @param {number} [px] */
  #setHeight(block, px = block.photos.length * this.#rowPx) {
    block.element.style.height = block.rows ? "" : `${Math.round(px)}px`;
  }

  /** Set the position and the number of rows for screen readers. */
  #number() {
    if (this.#isNumbering) return;
    this.#isNumbering = true;
    requestAnimationFrame(() => {
      this.#isNumbering = false;
      let position = 0;
      const size = this.hasMore ? -1 : this.size;
      for (const { photos, rows } of this.#blocks) {
        if (rows) {
          photos.forEach((photo, index) => {
            const element = rows.get(photo)?.element;
            element?.setAttribute("aria-posinset", String(position + index + 1));
            element?.setAttribute("aria-setsize", String(size));
          });
        }
        position += photos.length;
      }
    });
  }
}
