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
/** @type {import("../parts/filters.js").Field[]} */
const FIELDS = [
  { name: "from", label: "Sent from", type: "instant" },
  { name: "to", label: "Sent until", type: "instant" },
];

/** @typedef {"retry" | "delete"} Action */

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view(context) {
  const list = new FailuresView(context);
  return {
    element: list.element,
    title: "Failures",
    ready: list.reload(),
    update: list.update,
    dispose: list.dispose,
  };
}

class FailuresView {
  element;
  #context;
  #query;
  #filters;
  #table;
  #latest = new Latest();
  /** @type {Map<string, any>} the kinds by their id */ #groups = new Map();
  #isShown = false;
  #hasFailed = false;
  #ends;

  /** @param {import("../router.js").Context} context */
  constructor(context) {
    const { query, setQuery, mayChange } = context;
    this.#context = context;
    this.#query = query;
    this.#filters = new Filters(FIELDS, query, setQuery);
    this.#table = new DataTable({
      caption: "Kinds of failures, the most frequent first",
      columns: columns(mayChange ? this.#act : null),
      key: ({ failure }) => failure,
      href: (group) => withQuery("/console/jobs", this.#filterOf(group)),
      empty: { title: "Nothing has failed", text: "Failed jobs are listed here, grouped by reason." },
      skeletonRows: 4,
    });
    this.#table.element.classList.add("failures-table");
    this.element = h("div", { class: "view" }, heading("Failures"), this.#filters.element, this.#table.element);
    this.#ends = [
      every(REFRESH_MS, () => (this.#isShown || this.#hasFailed) && this.#load()),
      addKeys(mayChange ? [{ keys: "t", does: "Retry all jobs of the row", run: () => this.#retryFocused() }] : []),
      () => this.#filters.dispose(),
      () => this.#table.dispose(),
      () => this.#latest.dispose(),
    ];
  }

  dispose = () => this.#ends.forEach((end) => end());

  /** @param {URLSearchParams} query */
  update = (query) => {
    this.#query = query;
    this.#filters.update(query);
    this.reload();
  };

  reload() {
    this.#isShown = false;
    this.#groups.clear();
    this.#table.loading();
    return this.#load();
  }

  #load() {
    const { api } = this.#context;
    const query = this.#filters.values(this.#query);
    return this.#latest.run((signal) => api.get("/api/queue/failures", { query, signal }), {
      done: ({ items }) => this.#show(items),
      failed: (error) => {
        if (this.#isShown) return this.#table.stale(error);
        this.#hasFailed = error.status === 0 || error.status >= 500;
        this.#table.fail(error, () => this.reload());
      },
    });
  }

  /** @param {any[]} items */
  #show(items) {
    this.#isShown = true;
    this.#hasFailed = false;
    const most = Math.max(1, ...items.map(({ count }) => count));
    const groups = inSameOrder([...this.#groups.values()], items);
    this.#groups = new Map(groups.map((group) => [group.failure, group]));
    this.#table.show(groups.map((group) => ({ ...group, share: group.count / most })));
  }

  /** @param {any} group @returns {Record<string, string>} the filter of its jobs */
  #filterOf({ failure }) {
    return { state: "failed", failure, ...this.#filters.values(this.#query) };
  }

  /** @param {Action} action @param {any} group */
  #act = async (action, group) => {
    const { api, live } = this.#context;
    const title = action === "retry" ? "Retry all of this kind?" : "Delete all of this kind?";
    if (!(await runBulk({ api, action, filter: this.#filterOf(group), title }))) return;
    live.refresh();
    this.#groups.clear();
    this.#load();
  };

  #retryFocused() {
    const row = /** @type {HTMLElement | null | undefined} */ (document.activeElement?.closest("tr[data-key]"));
    const group = this.#groups.get(row?.dataset.key ?? "");
    if (group) this.#act("retry", group);
  }
}

/**
 * Kinds keep their order while they are shown: a button must not be replaced by that of another kind.
 * @param {any[]} shown @param {any[]} items the same list, read again
 */
function inSameOrder(shown, items) {
  const found = new Map(items.map((group) => [group.failure, group]));
  const known = new Set(shown.map(({ failure }) => failure));
  return [
    ...shown.map((group) => found.get(group.failure) ?? { ...group, count: 0, isExact: true }),
    ...items.filter(({ failure }) => !known.has(failure)),
  ];
}

/** @param {((action: Action, group: any) => unknown) | null} act @returns {import("../parts/table.js").Column<any>[]} */
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

/** @param {(action: Action, group: any) => unknown} act @param {any} group */
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
