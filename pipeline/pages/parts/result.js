/** The result of a photo: values from the AI, corrections, and provenance. */

import { h } from "../dom.js";
import { number, time } from "./time.js";

const NAMES = /** @type {Record<string, string>} */ ({ brand: "Brand", model: "Model", colorway: "Colours" });

/** @param {any} details of GET /api/queue/jobs/{jobId} @returns {any[]} */
export function result({ asset, history }) {
  const { aiMetadata, corrections } = asset;
  const rows = Object.entries(NAMES).map(([field, name]) => [
    name,
    value(aiMetadata[field], corrections[field], firstOf(history, field)),
  ]);
  const extra = Object.entries(aiMetadata.extra ?? {}).map(([name, each]) => [name, textOf(each)]);
  if (!aiMetadata.processedAt && !Object.keys(corrections).length)
    return [h("p", { class: "soft" }, "There is no result.")];
  return [
    facts([...rows, ...extra]),
    history.length
      ? h(
          "details",
          {},
          h("summary", {}, `Corrections (${history.length})`),
          h("ol", { class: "corrections small" }, history.map(correction)),
        )
      : null,
  ];
}

/** The provenance and the usage. @param {any} provenance @returns {any[]} */
export function provenanceRows(provenance) {
  if (!provenance) return [];
  const { provider, model, promptVersion, confidenceKind, usage } = provenance;
  const rows = [
    ["AI provider", provider],
    ["Model", model],
    ["Prompt", promptVersion],
    ["Confidence", confidenceKind],
    ...Object.entries(usage ?? {}).map(([name, amount]) => [name, textOf(amount)]),
  ];
  return rows.filter(([, each]) => each != null && each !== "");
}

/** Names and values. @param {any[][]} rows */
export function facts(rows) {
  return h(
    "dl",
    { class: "facts job-facts" },
    rows.map(([name, each]) => h("div", {}, h("dt", {}, name), h("dd", {}, each ?? "–"))),
  );
}

/** @param {any} found @param {any} corrected @param {string | null | undefined} before */
function value(found, corrected, before) {
  if (corrected)
    return [
      h("b", {}, corrected.value),
      " ",
      h("span", { class: "badge busy" }, "corrected"),
      h(
        "span",
        { class: "soft small below" },
        before ? `the AI said ${before} · ` : "",
        `by ${corrected.by} · `,
        time(corrected.at),
      ),
    ];
  if (!found) return h("span", { class: "soft" }, "not seen");
  return [
    h("b", {}, found.value),
    found.confidence == null
      ? null
      : h("span", { class: "soft small number confidence" }, ` ${Math.round(100 * found.confidence)} % sure`),
  ];
}

/** The AI's value before any correction. @param {any[]} history @param {string} field */
function firstOf(history, field) {
  return history.find((each) => each.field === field)?.before;
}

/** @param {any} made */
function correction({ field, value: to, before, by, at }) {
  return h(
    "li",
    {},
    h("b", {}, NAMES[field] ?? field),
    `: ${before ?? "nothing"} → ${to ?? "what the AI said"} `,
    h("span", { class: "soft" }, `by ${by} · `, time(at)),
  );
}

/** A value of the provider's own, as text. @param {any} each @returns {string} */
function textOf(each) {
  if (typeof each === "number") return number(each);
  if (Array.isArray(each)) return each.map(textOf).join(", ");
  return typeof each === "object" && each ? JSON.stringify(each) : String(each);
}
