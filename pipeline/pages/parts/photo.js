/** Photos: small ones in lists, and one that opens large. */

import { h } from "../dom.js";

/** @param {string | null} url @returns {HTMLElement} a square, grey while there is no picture */
export function thumbnail(url) {
  const frame = h("span", { class: "thumb" });
  if (url) frame.append(picture(url, { width: 40, height: 40 }, () => frame.replaceChildren()));
  return frame;
}

/**
 * A photo in a frame of its own shape, so that nothing moves when it comes.
 * @param {any} asset of GET /api/queue/jobs/{jobId}
 */
export function photo({ images, category }) {
  const { original, previews } = images;
  const { width, height } = original;
  const small = previews?.["1280"] ?? previews?.["320"] ?? original;
  const large = previews?.["1280"] ?? original;
  const alt = `Photo of a ${category}`;
  const frame = h("button", {
    type: "button",
    class: "photo",
    "aria-label": `${alt}: show it large`,
    onclick: () => showLarge(large.url, original.url, alt),
  });
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.append(
    picture(small.url, { width: small.width ?? width, height: small.height ?? height, alt: "" }, () =>
      frame.replaceChildren(h("span", { class: "soft small" }, "The picture cannot be shown.")),
    ),
  );
  return frame;
}

/** @param {string} url @param {Record<string, any>} props @param {() => void} failed */
function picture(url, props, failed) {
  return h("img", { alt: "", loading: "lazy", decoding: "async", ...props, src: url, onerror: failed });
}

/** @param {string} url @param {string} original @param {string} alt */
function showLarge(url, original, alt) {
  const dialog = h(
    "dialog",
    {
      class: "large-photo",
      "aria-label": alt,
      onclose: () => dialog.remove(),
      onclick: (/** @type {Event} */ event) => event.target === dialog && dialog.close(),
    },
    h("img", { src: url, alt }),
    h(
      "div",
      { class: "row" },
      h("a", { class: "button", href: original, target: "_blank", rel: "noopener" }, "Open the original"),
      h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close"),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("button")?.focus();
}
