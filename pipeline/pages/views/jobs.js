/** Jobs by state, user, category, provider, kind of failure, time and text, with actions for many of them. */

import { isAbort, withQuery } from "../api.js";
import { h } from "../dom.js";
import { runBulk } from "../parts/bulk.js";
import { Filters } from "../parts/filters.js";
import { STATES, hrefOf, nameOf, stateBadge, stateDetails } from "../parts/job-words.js";
import { addKeys } from "../parts/keyboard.js";
import { Latest } from "../parts/latest.js";
import { Pager } from "../parts/pager.js";
import { thumbnail } from "../parts/photo.js";
import { every } from "../parts/refresh.js";
import { Selection } from "../parts/selection.js";
import { heading } from "../parts/states.js";
import { merged, newsWords } from "../parts/steady.js";
import { DataTable } from "../parts/table.js";
import { Tabs } from "../parts/tabs.js";
import { time } from "../parts/time.js";

const LIMIT = 25;
const REFRESH_MS = 5_000;
const COUNT_EVERY = 3; // refreshes

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view(context) {
  const list = new JobsView(context);
  return { element: list.element, title: "Jobs", ready: list.load(), update: list.update, dispose: list.dispose };
}

class JobsView {
  element;
  #context;
  #query;
  #filters;
  #table;
  #pager;
  #tabs;
  #selection;
  #news = h("button", { type: "button", class: "news quiet", onclick: () => this.#showNews() });
  #announced = h("span", { class: "visually-hidden", role: "status" });
  #latest = new Latest();
  #counting = new Latest();
  /** @type {any} the page that is shown */ #page = null;
  #alive = new AbortController();
  /** @type {(() => void)[]} */ #ends;
  #refreshes = 0;
  #hasFailed = false;

  /** @param {import("../router.js").Context} context */
  constructor(context) {
    const { query, setQuery, about, mayChange } = context;
    this.#context = context;
    this.#query = query;
    this.#filters = new Filters(fields(about), query, setQuery);
    this.#pager = new Pager(setQuery);
    this.#tabs = new Tabs("States", STATES, (state) => setQuery({ state, cursor: null }), { hasCounts: true });
    this.#table = new DataTable({
      caption: "Jobs, newest first",
      columns: COLUMNS,
      key: ({ assetId }) => assetId,
      href: hrefOf,
      label: mayChange ? (/** @type {any} */ job) => `${nameOf(job)} of ${job.userId}, ${job.assetId}` : undefined,
      onSelect: (selected) => this.#selection?.select(selected),
      empty: {
        title: "No jobs found",
        text: "No job matches these filters. New photos appear here automatically.",
      },
    });
    this.#table.element.classList.add("jobs-table");
    this.#selection = new Selection(mayChange, { act: this.#act, clear: () => this.#table.clearSelection() });
    const bar = h(
      "div",
      { class: "list-head" },
      this.#selection.element,
      h("span", { class: "news-place" }, this.#news, this.#announced),
    );
    this.element = h(
      "div",
      { class: "view" },
      heading("Jobs"),
      this.#tabs.element,
      this.#filters.element,
      h("div", { class: "list" }, bar, this.#table.element),
      this.#pager.element,
    );
    this.#ends = [every(REFRESH_MS, () => this.#refresh()), addKeys(this.#keys())];
    this.#showChanges(0, 0);
  }

  #keys() {
    const { mayChange } = this.#context;
    return [
      { keys: "r", does: "Show what is new", run: () => this.#showNews() },
      ...(mayChange ? [{ keys: "a", does: "Select all that match", run: () => this.#selection.toggleAll() }] : []),
    ];
  }

  dispose = () => {
    this.#alive.abort();
    for (const end of this.#ends) end();
    for (const part of [this.#filters, this.#table, this.#latest, this.#counting]) part.dispose();
  };

  /** @param {URLSearchParams} query */
  update = (query) => {
    this.#query = query;
    this.#filters.update(query);
    this.#table.clearSelection();
    this.load();
  };

  get #state() {
    return this.#query.get("state") ?? "";
  }

  /** @returns {Record<string, string>} */
  get #filter() {
    return { ...(this.#state && { state: this.#state }), ...this.#filters.values(this.#query) };
  }

  // reading

  load() {
    this.#page = null;
    this.#table.loading();
    this.#tabs.show(this.#state, (state) =>
      withQuery("/console/jobs", { ...this.#filters.values(this.#query), state }),
    );
    this.#selection.show(this.#state);
    this.#showChanges(0, 0);
    this.#count();
    return this.#latest.run((signal) => this.#ask(signal), {
      done: (page) => this.#show(page),
      failed: (error) => {
        this.#hasFailed = error.status === 0 || error.status >= 500;
        this.#table.fail(error, () => this.load());
      },
    });
  }

  /** @param {AbortSignal} signal @param {Record<string, string>} [only] */
  async #ask(signal, only) {
    const cursor = this.#query.get("cursor");
    const page = await this.#context.api.get("/api/queue/jobs", {
      query: { ...this.#filter, ...only, limit: LIMIT, cursor },
      signal,
    });
    return { ...page, cursor };
  }

  /** @param {any} page */
  #show(page) {
    this.#page = page;
    this.#hasFailed = false;
    const { items, nextCursor, searchedTo, cursor } = page;
    this.#table.show(items);
    this.#pager.show({ cursor, nextCursor, count: items.length, searchedTo: items.length < LIMIT ? searchedTo : null });
  }

  /** Read again after an outage; the message about it stays instead of grey rows. */
  #readAgain() {
    return this.#latest.run((signal) => this.#ask(signal), {
      done: (page) => (this.#show(page), this.#count()),
      failed: () => {},
    });
  }

  #showNews() {
    if (this.#query.get("cursor")) this.#context.setQuery({ cursor: null });
    else this.load();
    this.element.querySelector("h1")?.focus({ preventScroll: true });
  }

  /** Read the page again: rows are updated in place, and new ones are counted. */
  async #refresh() {
    const page = this.#page;
    if (!page) return this.#hasFailed && this.#readAgain();
    if ((this.#refreshes += 1) % COUNT_EVERY === 0) this.#count();
    const newest = page.cursor ? null : page.items[0]?.createdAt;
    const { signal } = this.#alive;
    try {
      const fresh = await this.#ask(signal, newest && { to: newest });
      if (this.#page !== page) return;
      if (!page.items.length) {
        if (fresh.items.length) this.#count();
        return this.#show(fresh);
      }
      const { rows, unlisted } = merged(page.items, fresh.items, {
        key: ({ assetId }) => assetId,
        at: ({ createdAt }) => createdAt,
        readTo: fresh.searchedTo ?? "",
      });
      const added = newest ? await this.#added(newest, signal) : { count: 0, isExact: true };
      if (this.#page !== page) return;
      page.items = rows;
      this.#table.show(rows);
      if (this.#showChanges(added.count, unlisted, added.isExact)) this.#count();
    } catch (error) {
      if (!isAbort(error) && this.#page === page) this.#table.stale(error);
    }
  }

  /** The number of jobs since then. @param {string} newest @param {AbortSignal} signal @returns {Promise<{count: number, isExact: boolean}>} */
  async #added(newest, signal) {
    const from = new Date(Date.parse(newest) + 1).toISOString();
    const { to } = this.#filter;
    if (to && to < from) return { count: 0, isExact: true };
    return this.#context.api.get("/api/queue/jobs/count", { query: { ...this.#filter, from }, signal });
  }

  /** @param {number} added @param {number} unlisted @param {boolean} [isExact] @returns {boolean} whether it has changed */
  #showChanges(added, unlisted, isExact = true) {
    const words = newsWords(added, unlisted, isExact);
    const isOther = words !== this.#news.textContent;
    const isFirst = this.#news.hidden && words;
    this.#news.hidden = !words;
    this.#news.textContent = words;
    if (isFirst) this.#announced.textContent = "The list has changed. Press r to reload it.";
    else if (!words) this.#announced.textContent = "";
    return isOther;
  }

  /** Read the counts of all states one after the other, the present state first. */
  #count() {
    const { api } = this.#context;
    const filter = this.#filters.values(this.#query);
    const first = this.#state;
    const states = STATES.map(({ value }) => value).sort(
      (one, other) => Number(other === first) - Number(one === first),
    );
    this.#counting.run(
      async (signal) => {
        for (const state of states) {
          // Without Redis the number of waiting jobs is unknown; the tab stays without a number.
          const found = await api
            .get("/api/queue/jobs/count", { query: { ...filter, state }, signal })
            .catch(() => null);
          signal.throwIfAborted();
          this.#tabs.count(state, found);
          if (found && state === first) this.#selection.count(found);
        }
      },
      { done: () => {}, failed: () => {} },
    );
  }

  // acting

  /** @param {import("../parts/bulk.js").Action} action @param {any[] | null} selected null: all that match */
  #act = async (action, selected) => {
    const given = selected ? { jobs: selected } : { filter: this.#filter };
    if (!(await runBulk({ api: this.#context.api, action, ...given }))) return;
    this.#context.live.refresh();
    this.#table.clearSelection();
    this.#selection.clear();
    // The page may be beyond the end of the list now.
    if (this.#query.get("cursor")) this.#context.setQuery({ cursor: null });
    else this.load();
  };
}

/** @type {import("../parts/table.js").Column<any>[]} */
const COLUMNS = [
  { title: "Photo", class: "photo-cell", cell: ({ preview }) => thumbnail(preview) },
  {
    title: "Job",
    class: "job-cell",
    cell: (job) => [
      h("a", { class: "job-name", href: hrefOf(job) }, nameOf(job)),
      h("code", { class: "below soft" }, job.assetId),
    ],
  },
  {
    title: "State",
    class: "grow state-cell",
    cell: (job) => [stateBadge(job), h("span", { class: "small details" }, stateDetails(job))],
  },
  {
    title: "User",
    class: "user-cell",
    cell: ({ userId }) => h("a", { href: withQuery("/console/jobs", { user: userId }), title: userId }, userId),
  },
  { title: "Sent", align: "end", class: "nowrap sent-cell", cell: ({ createdAt }) => time(createdAt) },
  { title: "Ended", align: "end", class: "nowrap ended-cell", cell: ({ finishedAt }) => time(finishedAt) },
];

/** @param {any} about @returns {import("../parts/filters.js").Field[]} */
function fields(about) {
  return [
    { name: "q", label: "Search", type: "search", placeholder: "Id, user, brand, model or reason" },
    { name: "user", label: "User" },
    { name: "category", label: "Category", suggestions: about.categories },
    { name: "provider", label: "AI provider", suggestions: about.providers?.map(({ name }) => name) },
    { name: "failure", label: "Kind of failure", placeholder: "From the page Failures" },
    { name: "from", label: "Sent from", type: "instant" },
    { name: "to", label: "Sent until", type: "instant" },
  ];
}
