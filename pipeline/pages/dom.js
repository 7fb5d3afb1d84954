/** Elements without HTML: what users and plugins have written is text and stays text. */

/**
 * Make an element.
 * @param {string} name of the element
 * @param {Record<string, any>} [props] `class`, attributes, properties like `value` and `checked`, and listeners like
 *   `onclick`; false, null and undefined are left out
 * @param {...(Node | string | number | null | undefined | false | Array<any>)} children
 * @returns {any} the element
 */
export function h(name, props, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(props ?? {})) set(element, key, value);
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false).map(asNode));
  return element;
}

/** Show these children and no others. @param {Element} element @param {...any} children */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false).map(asNode));
}

/** @param {Element} element @param {string} key @param {any} value */
function set(element, key, value) {
  if (value == null || value === false) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "class") element.className = value;
  else if (["value", "checked", "disabled", "selected", "indeterminate", "open"].includes(key)) /** @type {any} */ (element)[key] = value;
  else element.setAttribute(key, value === true ? "" : safe(key, value));
}

/** A link or a picture never runs code. @param {string} key @param {unknown} value */
function safe(key, value) {
  const text = String(value);
  if (key !== "href" && key !== "src") return text;
  const { protocol } = new URL(text, location.href);
  return ["http:", "https:", "blob:", "mailto:"].includes(protocol) || text.startsWith("data:image/") ? text : "#";
}

/** @param {any} child */
function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}
