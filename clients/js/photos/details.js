/** One photo in a dialog: large, with all details and each attempt. */

import { fill, h, icon } from "./elements.js";
import { confidenceWords, FIELDS, megabytes, nameOf, stateOf, titled } from "./words.js";

export class Details {
  #content = h("div", { class: "details" });
  /** @type {import("./photos.js").Photo | null} */ #photo = null;

  constructor() {
    const close = h(
      "button",
      { type: "button", class: "quiet close", "aria-label": "Close", onclick: () => this.element.close() },
      icon("close"),
    );
    this.element = h(
      "dialog",
      {
        "aria-label": "Photo",
        onclose: () => (this.#photo = null),
        onclick: (/** @type {any} */ event) => event.target === this.element && this.element.close(),
      },
      h("div", { class: "sheet" }, close, this.#content),
    );
  }

  /** @param {import("./photos.js").Photo} photo */
  open(photo) {
    this.#photo = photo;
    this.#show();
    this.element.showModal();
  }

  /** Show the present state of the photo. */
  update() {
    if (this.#photo?.isHidden) this.element.close();
    else if (this.#photo) this.#show();
  }

  #show() {
    const photo = /** @type {import("./photos.js").Photo} */ (this.#photo);
    const { badge, kind, text } = stateOf(photo);
    this.element.setAttribute("aria-label", nameOf(photo));
    fill(
      this.#content,
      this.#picture(photo),
      h("div", { class: "head" }, h("h2", {}, nameOf(photo)), h("span", { class: `badge ${kind}` }, badge)),
      text && h("p", { class: "state-text" }, text),
      values(photo.asset),
      lettering(photo.asset),
      attempts(photo.asset),
      fileFacts(photo),
    );
  }

  /** Reuse the element if the picture is the same, so that it does not flicker. @param {import("./photos.js").Photo} photo */
  #picture(photo) {
    const { previews, original } = photo.asset?.images ?? {};
    const frame = h("div", { class: "large" });
    const show = (/** @type {string | undefined} */ address) => {
      const before = this.#content.querySelector(".large img");
      if (address && before?.src === new URL(address, location.href).href) frame.append(before);
      else
        frame.append(
          address
            ? h("img", { src: address, alt: nameOf(photo), width: original?.width, height: original?.height })
            : icon("image"),
        );
    };
    const address = previews?.["1280"]?.url ?? (photo.picture ? null : original?.url);
    if (address || !photo.picture) show(address);
    else photo.picture.then((local) => show(local || original?.url));
    return frame;
  }
}

/** @param {any} asset */
function values(asset) {
  const seen = FIELDS.filter((field) => asset?.aiMetadata?.[field]?.value);
  return (
    seen.length > 0 &&
    h(
      "dl",
      { class: "facts" },
      seen.map((field) => {
        const { value, confidence } = asset.aiMetadata[field];
        return h(
          "div",
          {},
          h("dt", {}, titled(field)),
          h(
            "dd",
            {},
            `${value} `,
            h("span", { class: "sure" }, confidenceWords(confidence, Boolean(asset.corrections?.[field]))),
          ),
        );
      }),
    )
  );
}

/** The lettering on the product. @param {any} asset */
function lettering(asset) {
  const lines = asset?.aiMetadata?.extra?.text;
  const read = (Array.isArray(lines) ? lines : [lines])
    .map((each) => (typeof each === "string" ? each : (each?.value ?? each?.text)))
    .filter((each) => typeof each === "string" && each);
  return (
    read.length > 0 &&
    h(
      "p",
      {},
      h("span", { class: "soft" }, "Text on it: "),
      read
        .slice(0, 8)
        .map((each) => `“${each}”`)
        .join(", "),
    )
  );
}

/** @param {any} asset */
function attempts(asset) {
  if (!asset?.attempts?.length) return null;
  const items = asset.attempts.map((/** @type {any} */ { attempt, startedAt, endedAt, provider, outcome, reason }) => {
    const seconds = ((Date.parse(endedAt) - Date.parse(startedAt)) / 1000).toLocaleString([], {
      maximumFractionDigits: 1,
    });
    const by = provider ? ` by ${provider}` : "";
    return h(
      "li",
      { class: outcome },
      h("b", {}, `Attempt ${attempt}`),
      ` at ${new Date(startedAt).toLocaleTimeString()}${by}, ${seconds} s`,
      h("br"),
      outcome === "completed" ? "The AI answered." : reason || "It failed.",
    );
  });
  return h("section", {}, h("h3", {}, "Attempts"), h("ol", { class: "attempts" }, items));
}

/** @param {import("./photos.js").Photo} photo */
function fileFacts({ asset, note, name }) {
  const original = asset?.images?.original;
  const facts = [
    name,
    asset?.category && titled(asset.category),
    asset?.createdAt &&
      `sent ${new Date(asset.createdAt).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}`,
    original?.width && `${original.width} × ${original.height}, ${megabytes(original.bytes)}`,
    note.toLowerCase(),
  ];
  return h("p", { class: "soft small" }, facts.filter(Boolean).join(" · "));
}
