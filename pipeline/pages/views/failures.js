/** Failed jobs by kind: reasons that differ only in numbers, ids, hosts and quoted texts are one kind. */

import { withQuery } from "../api.js";
import { h } from "../dom.js";
import { runBulk } from "../parts/bulk.js";
import { Filters } from "../parts/filters.js";
import { addKeys } from "../parts/keyboard.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { heading } from "../parts/states.js";
import { DataTable } from "../parts/table.js";
import { number, time } from "../parts/time.js";

const REFRESH_MS = 10_000;

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view({ api, query, setQuery, mayChange, live }) {
  const filters = new Filters(
    [
      { name: "from", label: "Sent from", type: "instant" },
      { name: "to", label: "Sent until", type: "instant" },
    ],
    query,
    setQuery,
  );
  const latest = new Latest();
  let current = query;
  let isShown = false;
  let hasFailed = false;
  const filterOf = (/** @type {any} */ { failure }) => ({ state: "failed", failure, ...filters.values(current) });
  const act = async (/** @type {"retry" | "delete"} */ action, /** @type {any} */ group) => {
    const title = action === "retry" ? "Retry all of this kind?" : "Delete all of this kind?";
    if (!(await runBulk({ api, action, filter: filterOf(group), title }))) return;
    live.refresh();
    groups.clear();
    load();
  };
  /** @type {Map<string, any>} */ let groups = new Map();
  const table = new DataTable({
    caption: "Kinds of failures, the most frequent first",
    columns: columns(mayChange ? act : null),
    key: ({ failure }) => failure,
    href: (group) => withQuery("/console/jobs", filterOf(group)),
    empty: { title: "Nothing has failed", text: "Failed jobs are listed here, grouped by reason." },
    skeletonRows: 4,
  });
  table.element.classList.add("failures-table");
  /**
   * Kinds keep their order while they are shown: a button must not be replaced by that of another kind.
   * @param {any[]} items
   */
  const steady = (items) => {
    const found = new Map(items.map((group) => [group.failure, group]));
    const known = [...groups.values()].map(
      (group) => found.get(group.failure) ?? { ...group, count: 0, isExact: true },
    );
    return [...known, ...items.filter(({ failure }) => !groups.has(failure))];
  };
  const load = () =>
    latest.run((signal) => api.get("/api/queue/failures", { query: filters.values(current), signal }), {
      done({ items }) {
        isShown = true;
        hasFailed = false;
        const most = Math.max(1, ...items.map((/** @type {any} */ { count }) => count));
        groups = new Map(steady(items).map((/** @type {any} */ group) => [group.failure, group]));
        table.show([...groups.values()].map((group) => ({ ...group, share: group.count / most })));
      },
      failed(error) {
        if (isShown) return table.stale(error);
        hasFailed = error.status === 0 || error.status >= 500;
        table.fail(error, reload);
      },
    });
  const reload = () => ((isShown = false), groups.clear(), table.loading(), load());
  const focused = () => groups.get(/** @type {any} */ (document.activeElement)?.closest("tr[data-key]")?.dataset.key);
  const ends = [
    every(REFRESH_MS, () => (isShown || hasFailed) && load()),
    addKeys(
      mayChange
        ? [{ keys: "t", does: "Retry all jobs of the row", run: () => focused() && act("retry", focused()) }]
        : [],
    ),
    () => filters.dispose(),
    () => table.dispose(),
    () => latest.dispose(),
  ];
  return {
    element: h("div", { class: "view" }, heading("Failures"), filters.element, table.element),
    title: "Failures",
    ready: reload(),
    update: (next) => ((current = next), filters.update(next), reload()),
    dispose: () => ends.forEach((end) => end()),
  };
}

/** @param {((action: "retry" | "delete", group: any) => unknown) | null} act @returns {import("../parts/table.js").Column<any>[]} */
function columns(act) {
  return [
    {
      title: "Reason",
      class: "grow reason-cell",
      cell: ({ reason, share }) => [h("span", { class: "below" }, reason), bar(share)],
    },
    {
      title: "Jobs",
      align: "end",
      class: "nowrap count-cell",
      cell: ({ count, isExact }) => `${number(count)}${isExact ? "" : "+"}`,
    },
    { title: "Last sent", align: "end", class: "nowrap", cell: ({ lastAt }) => time(lastAt) },
    { title: "First sent", align: "end", class: "nowrap", cell: ({ firstAt }) => time(firstAt) },
    ...(act
      ? [{ title: "Actions", class: "nowrap actions-cell", cell: (/** @type {any} */ group) => buttons(act, group) }]
      : []),
  ];
}

/** A bar: the number compared with the most frequent kind. @param {number} share */
function bar(share) {
  const filled = h("span", {});
  filled.style.width = `${Math.max(1, 100 * share)}%`;
  return h("span", { class: "share", "aria-hidden": "true" }, filled);
}

/** @param {(action: "retry" | "delete", group: any) => unknown} act @param {any} group */
function buttons(act, group) {
  const named = (/** @type {string} */ verb) => `${verb} all jobs that failed with: ${group.reason}`;
  return h(
    "span",
    { class: "row row-actions" },
    h(
      "button",
      { type: "button", class: "compact", "aria-label": named("Retry"), onclick: () => act("retry", group) },
      "Retry all …",
    ),
    h(
      "button",
      { type: "button", class: "compact danger", "aria-label": named("Delete"), onclick: () => act("delete", group) },
      "Delete all …",
    ),
  );
}
