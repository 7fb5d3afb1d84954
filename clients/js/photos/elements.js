/** Builds elements without HTML, so that texts of users and plugins stay texts. */

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
  element.append(
    ...children
      .flat(Infinity)
      .filter((child) => child != null && child !== false)
      .map(asNode),
  );
  return element;
}

/** Replace all children. @param {Element} element @param {...any} children */
export function fill(element, ...children) {
  element.replaceChildren(
    ...children
      .flat(Infinity)
      .filter((child) => child != null && child !== false)
      .map(asNode),
  );
}

/** Icons in the style of Feather: one path each, in a square of 24. */
const PATHS = {
  camera:
    "M4 8h3l2-3h6l2 3h3a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1zM12 17a4 4 0 1 0 0-8 4 4 0 0 0 0 8z",
  check: "M5 13l4 4L19 7",
  close: "M6 6l12 12M18 6L6 18",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  image: "M4 5h16a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zM3 16l5-5 5 5 3-3 5 5M15.5 9.5h.01",
  retry: "M4 12a8 8 0 0 1 13.7-5.6L20 9M20 4v5h-5M20 12a8 8 0 0 1-13.7 5.6L4 15M4 20v-5h5",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  upload: "M12 16V4M7 9l5-5 5 5M4 16v3a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-3",
};

/** An icon that screen readers skip. @param {keyof typeof PATHS} name @returns {SVGElement} */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const [drawing, path] = ["svg", "path"].map((each) => document.createElementNS(space, each));
  const shape = {
    viewBox: "0 0 24 24",
    class: "icon",
    fill: "none",
    stroke: "currentColor",
    "stroke-width": "1.8",
    "stroke-linecap": "round",
    "stroke-linejoin": "round",
    "aria-hidden": "true",
  };
  for (const [key, value] of Object.entries(shape)) drawing.setAttribute(key, value);
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return /** @type {SVGElement} */ (drawing);
}

/** @param {Element} element @param {string} key @param {any} value */
function set(element, key, value) {
  if (value == null || value === false) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "class") element.className = value;
  else if (["value", "checked", "disabled", "selected", "indeterminate", "open"].includes(key))
    /** @type {any} */ (element)[key] = value;
  else element.setAttribute(key, value === true ? "" : safe(key, value));
}

/** Refuse URLs that run code. @param {string} key @param {unknown} value */
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
