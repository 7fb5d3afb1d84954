/** The plugins of the process that answers: health, limits, calls, errors, and today's usage of AI. */

import { h } from "../dom.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { heading } from "../parts/states.js";
import { DataTable } from "../parts/table.js";
import { duration, large, number, time } from "../parts/time.js";

const EVERY_MS = 5_000;
const MANY = 0.05; // of the calls

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view({ api }) {
  const latest = new Latest();
  /** @type {DataTable<any>} */
  const table = new DataTable({
    caption: "Plugins",
    columns: COLUMNS,
    key: ({ kind, name }) => `${kind} ${name}`,
    empty: { title: "No plugins are loaded." },
    skeletonRows: 4,
  });
  table.loading();
  const load = () =>
    latest.run((signal) => api.get("/api/plugins", { signal }), {
      done: ({ items, aiBudget }) => {
        budget.hidden = !aiBudget;
        budget.textContent = budgetWords(aiBudget);
        table.show(items);
      },
      failed: (error) => table.fail(error, load),
    });
  const budget = h("p", { class: "budget", hidden: true });
  const stop = every(EVERY_MS, load);
  const hint = h(
    "p",
    { class: "soft" },
    "The state in the process that answered this page. Calls and errors count from its start.",
  );
  return {
    element: h("div", { class: "view" }, heading("Plugins"), hint, budget, table.element),
    title: "Plugins",
    dispose: () => (stop(), latest.dispose(), table.dispose()),
  };
}

/** @type {import("../parts/table.js").Column<any>[]} */
const COLUMNS = [
  {
    title: "Plugin",
    cell: ({ name, kind, ...origin }) =>
      h(
        "span",
        { class: "two-lines" },
        h("b", {}, name),
        h("span", { class: "soft small" }, kind ?? "not loaded"),
        h("span", { class: "soft small" }, originWords(origin)),
      ),
  },
  { title: "State", cell: stateCell, class: "reasons" },
  { title: "Does", cell: doesCell, class: "grow" },
  { title: "Limits", cell: limitsCell, class: "nowrap" },
  { title: "Today", cell: ({ today }) => todayCell(today), class: "nowrap" },
  { title: "Calls", cell: ({ calls }) => number(calls), align: "end" },
  { title: "Errors", cell: errorsCell, align: "end", class: "nowrap" },
];

/** @type {Record<string, [string, string]>} the state, as a style and as text */
const STATES = {
  ok: ["good", "healthy"],
  held: ["bad", "in quarantine"],
  stuck: ["warn", "calls do not return"],
  blocking: ["warn", "blocks the service"],
  missing: ["bad", "missing"],
  broken: ["bad", "cannot be used"],
};

/** @param {any} plugin */
function stateCell({ state, reason, quarantinedUntil, warnings = [] }) {
  const [kind, word] = STATES[state] ?? ["warn", state ?? "unknown"];
  return h(
    "span",
    { class: "two-lines" },
    h(
      "span",
      {},
      h("span", { class: `badge ${kind}` }, word),
      quarantinedUntil && h("span", { class: "small" }, " next try ", time(quarantinedUntil, "until")),
    ),
    reason && h("span", { class: "soft small" }, reason),
    ...warnings.map((/** @type {string} */ each) => h("span", { class: "soft small" }, `Warning: ${each}`)),
  );
}

/** @param {any} plugin */
function doesCell({ sees, categories, imageFormats, isDurable, routes }) {
  const more = [
    categories?.length && `For ${categories.join(", ")}.`,
    imageFormats?.length && `Accepts ${imageFormats.join(", ")}; others are converted.`,
    isDurable && "Durable: retried until delivered.",
    routes?.length && `Serves ${routes.join(", ")}.`,
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
function limitsCell({ maxInFlight, maxInFlightInAll, rate }) {
  const limits = [
    maxInFlight && `${number(maxInFlight)} at once per process`,
    maxInFlightInAll && `${number(maxInFlightInAll)} at once in total`,
    rate && `${number(rate.calls)} in ${rate.perSeconds === 1 ? "a second" : duration(1000 * rate.perSeconds)}`,
  ].filter(Boolean);
  return limits.length ? h("span", { class: "two-lines" }, ...limits.map((each) => h("span", {}, each))) : "none";
}

/** @param {any} origin */
function originWords({ package: from, version, apiVersion, importMs }) {
  return [
    from && (version && from !== "built-in" ? `${from} ${version}` : from),
    apiVersion && `API ${apiVersion}`,
    importMs !== null && `imported in ${duration(importMs)}`,
  ]
    .filter(Boolean)
    .join(", ");
}

/** @param {any} today the usage of an AI provider */
function todayCell(today) {
  if (!today) return "–";
  const { calls, inputTokens, outputTokens, cost, currency, unpricedCalls } = today;
  const lines = [
    `${number(calls)} ${calls === 1 ? "answer" : "answers"}`,
    (inputTokens || outputTokens) && `${large(inputTokens)} tokens read, ${large(outputTokens)} written`,
    (cost || calls > unpricedCalls) && money(cost, currency),
    unpricedCalls && `${number(unpricedCalls)} of unknown cost`,
  ].filter(Boolean);
  return h("span", { class: "two-lines" }, ...lines.map((each) => h("span", { class: "small" }, each)));
}

/** @param {any} budget */
function budgetWords(budget) {
  if (!budget) return "";
  const { perDay, perUserPerDay, spent, currency } = budget;
  const words = [
    perDay === null
      ? `${money(spent, currency)} spent today`
      : `${money(spent, currency)} of ${money(perDay, currency)} spent today`,
  ];
  if (perUserPerDay !== null) words.push(`at most ${money(perUserPerDay, currency)} for each user`);
  return `AI budget: ${words.join(", ")}.`;
}

/** @param {number} amount @param {string} currency */
function money(amount, currency) {
  return `${amount.toFixed(amount && amount < 1 ? 4 : 2)} ${currency}`;
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
