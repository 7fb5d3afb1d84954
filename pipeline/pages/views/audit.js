/** Who did what: every change by an operator, kept for 90 days. */

import { h } from "../dom.js";
import { withQuery } from "../api.js";
import { Filters } from "../parts/filters.js";
import { Latest } from "../parts/latest.js";
import { Pager } from "../parts/pager.js";
import { heading } from "../parts/states.js";
import { DataTable } from "../parts/table.js";
import { exact, number, time } from "../parts/time.js";

const LIMIT = 50;
const ACTIONS = [
  "pause queue",
  "resume queue",
  "retry dead letters",
  "remove dead letters",
  "send delivery again",
  "erase user",
];

/** @type {import("../parts/filters.js").Field[]} */
const FIELDS = [
  { name: "who", label: "Who", type: "search", placeholder: "user id of an operator" },
  { name: "action", label: "Action", type: "text", placeholder: "like pause queue", suggestions: ACTIONS },
];

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view({ api, query, setQuery }) {
  const latest = new Latest();
  const filters = new Filters(FIELDS, query, setQuery);
  const pager = new Pager(setQuery);
  /** @type {DataTable<any>} */
  const table = new DataTable({
    caption: "Changes by operators, newest first",
    columns: COLUMNS,
    key: ({ id }) => id,
    empty: () =>
      Object.keys(filters.values(current)).length
        ? { title: "Nothing matches.", text: "Enter complete names." }
        : { title: "Nothing was changed.", text: "Changes by operators are listed here for 90 days." },
  });
  let current = query;
  const load = () => {
    table.loading();
    const cursor = current.get("cursor");
    const search = { ...filters.values(current), limit: LIMIT, cursor };
    return latest.run((signal) => api.get("/api/queue/audit", { query: search, signal }), {
      done: ({ items, nextCursor }) => {
        table.show(items);
        pager.show({ cursor, nextCursor, count: items.length });
      },
      failed: (error) => table.fail(error, load),
    });
  };
  return {
    element: h("div", { class: "view" }, heading("Audit"), filters.element, table.element, pager.element),
    title: "Audit",
    ready: load(),
    update(changed) {
      current = changed;
      filters.update(changed);
      load();
    },
    dispose: () => (latest.dispose(), filters.dispose(), table.dispose()),
  };
}

/** @type {import("../parts/table.js").Column<any>[]} */
const COLUMNS = [
  {
    title: "When",
    cell: ({ at }) => h("span", { class: "two-lines" }, time(at), h("span", { class: "soft small" }, exact(at))),
    class: "nowrap",
  },
  {
    title: "Who",
    cell: ({ who, address }) =>
      h("span", { class: "two-lines" }, whoCell(who), address && h("span", { class: "soft small" }, address)),
  },
  { title: "Action", cell: ({ action }) => action, class: "nowrap" },
  {
    title: "Target",
    cell: ({ target, count }) => [
      h("span", { class: "mono" }, target ?? "–"),
      count == null ? "" : h("span", { class: "soft" }, ` (${number(count)})`),
    ],
    class: "grow",
  },
  { title: "Outcome", cell: outcomeCell },
  {
    title: "Request",
    cell: ({ requestId }) => h("span", { class: "mono soft", title: requestId }, requestId ?? "–"),
    class: "clip",
  },
];

/** @param {string | null} who null: of a user who was erased */
function whoCell(who) {
  if (!who) return h("span", { class: "soft" }, "erased");
  return h("a", { href: withQuery("/console/audit", { who }), title: "Only this operator" }, who);
}

/** @param {any} entry */
function outcomeCell({ outcome }) {
  return h(
    "span",
    { class: `badge ${/** @type {any} */ ({ done: "good", refused: "warn", failed: "bad" })[outcome] ?? ""}` },
    outcome ?? "–",
  );
}
