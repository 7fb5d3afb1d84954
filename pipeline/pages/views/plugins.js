/** The plugins as the process that answers knows them: their health, limits, calls and errors. */

import { h } from "../dom.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { heading } from "../parts/states.js";
import { DataTable } from "../parts/table.js";
import { number, time } from "../parts/time.js";

const EVERY_MS = 5_000;
const MANY = 0.05; // of the calls

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view({ api }) {
  const latest = new Latest();
  /** @type {DataTable<any>} */
  const table = new DataTable({
    caption: "Plugins",
    columns: [
      {
        title: "Plugin",
        cell: ({ name, kind }) =>
          h("span", { class: "two-lines" }, h("b", {}, name), h("span", { class: "soft small" }, kind)),
      },
      { title: "State", cell: stateCell, class: "reasons" },
      { title: "Does", cell: doesCell, class: "grow" },
      { title: "Limits", cell: limitsCell, class: "nowrap" },
      { title: "Calls", cell: ({ calls }) => number(calls), align: "end" },
      { title: "Errors", cell: errorsCell, align: "end", class: "nowrap" },
    ],
    key: ({ kind, name }) => `${kind} ${name}`,
    empty: { title: "No plugins are loaded." },
    skeletonRows: 4,
  });
  table.loading();
  const load = () =>
    latest.run((signal) => api.get("/api/plugins", { signal }), {
      done: ({ items }) => table.show(items),
      failed: (error) => table.fail(error, load),
    });
  const stop = every(EVERY_MS, load);
  const hint = h("p", { class: "soft" }, "As the process that answers knows them; calls and errors since it started.");
  return {
    element: h("div", { class: "view" }, heading("Plugins"), hint, table.element),
    title: "Plugins",
    dispose: () => (stop(), latest.dispose(), table.dispose()),
  };
}

/** @type {Record<string, [string, string]>} the state, as a look and in words */
const STATES = {
  ok: ["good", "in order"],
  held: ["bad", "in quarantine"],
  stuck: ["warn", "calls hang"],
  blocking: ["warn", "blocks the service"],
  missing: ["bad", "missing"],
};

/** @param {any} plugin */
function stateCell({ state, reason, quarantinedUntil }) {
  const [kind, word] = STATES[state] ?? ["warn", state ?? "not known"];
  return h(
    "span",
    { class: "two-lines" },
    h(
      "span",
      {},
      h("span", { class: `badge ${kind}` }, word),
      quarantinedUntil && h("span", { class: "small" }, " tried again ", time(quarantinedUntil, "until")),
    ),
    reason && h("span", { class: "soft small" }, reason),
  );
}

/** @param {any} plugin */
function doesCell({ sees, categories, imageFormats, isDurable }) {
  const more = [
    categories?.length && `For ${categories.join(", ")}.`,
    imageFormats?.length && `Takes ${imageFormats.join(", ")}.`,
    isDurable && "Durable: tried until it is delivered.",
  ].filter(Boolean);
  return sees || more.length
    ? h(
        "span",
        { class: "two-lines" },
        sees && h("span", {}, sees),
        more.length ? h("span", { class: "soft small" }, more.join(" ")) : null,
      )
    : "–";
}

/** @param {any} plugin */
function limitsCell({ maxInFlight, rate }) {
  return (
    [
      maxInFlight && `${number(maxInFlight)} at once`,
      rate && (typeof rate === "number" ? `${number(rate)} per second` : String(rate)),
    ]
      .filter(Boolean)
      .join(", ") || "none"
  );
}

/** @param {any} plugin */
function errorsCell({ calls, errors }) {
  if (!errors) return number(errors);
  const share = calls ? errors / calls : 1;
  return h(
    "span",
    { class: share > MANY ? "bad-text" : "" },
    `${number(errors)} (${Math.max(1, Math.round(100 * share))} %)`,
  );
}
