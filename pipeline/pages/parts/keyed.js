/**
 * Elements for a list of items that is read repeatedly. Only changed elements are touched: a button that is replaced
 * between press and release of the pointer would not be clicked, and the focus would be lost.
 *
 * @template Item
 * @typedef {{element: HTMLElement, show: (item: Item) => void}} Part an element that can show another state of its item
 */

/** @template Item */
export class Keyed {
  #container;
  #key;
  #build;
  /** @type {Map<string, {text: string, element: HTMLElement, show?: (item: Item) => void}>} */ #shown = new Map();

  /**
   * @param {HTMLElement} container
   * @param {(item: Item) => string} key
   * @param {(item: Item) => HTMLElement | Part<Item>} build an element is for items without buttons: it is built again
   *   with every change
   */
  constructor(container, key, build) {
    this.#container = container;
    this.#key = key;
    this.#build = build;
  }

  /** @param {Item[]} items */
  show(items) {
    const before = this.#shown;
    this.#shown = new Map(items.map((item) => [this.#key(item), this.#updated(before.get(this.#key(item)), item)]));
    arrange(
      this.#container,
      [...this.#shown.values()].map(({ element }) => element),
    );
  }

  /** @param {{text: string, element: HTMLElement, show?: (item: Item) => void} | undefined} before @param {Item} item */
  #updated(before, item) {
    const text = JSON.stringify(item);
    if (before?.text === text) return before;
    if (before?.show) {
      before.show(item);
      return { ...before, text };
    }
    const built = this.#build(item);
    /** @type {{element: HTMLElement, show?: (item: Item) => void}} */
    const part =
      built instanceof HTMLElement
        ? { element: built }
        : { element: built.element, show: (/** @type {Item} */ next) => built.show(next) };
    part.show?.(item);
    before?.element.replaceWith(part.element);
    return { text, ...part };
  }
}

/** Give the container these children in this order; elements already in place stay, with their focus. @param {Element} container @param {Element[]} elements */
export function arrange(container, elements) {
  const wanted = new Set(elements);
  for (const child of [...container.children]) if (!wanted.has(child)) child.remove();
  elements.forEach((element, at) => {
    if (container.children[at] !== element) container.insertBefore(element, container.children[at] ?? null);
  });
}

/** Set a text only when it has changed. @param {Element} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
