/** The deliveries of durable notifiers in the last seven days, with the receivers' answers; each can be sent again. */

import { withQuery } from "../api.js";
import { h } from "../dom.js";
import { doInChunks } from "../parts/chunks.js";
import { deliveryBadge, responseWords, sendAgainButton } from "../parts/delivery-words.js";
import { Filters } from "../parts/filters.js";
import { Latest } from "../parts/latest.js";
import { Pager } from "../parts/pager.js";
import { every } from "../parts/refresh.js";
import { heading } from "../parts/states.js";
import { merged, newsWords } from "../parts/steady.js";
import { DataTable } from "../parts/table.js";
import { Tabs } from "../parts/tabs.js";
import { number, time } from "../parts/time.js";

const LIMIT = 25;
const CHUNK = 50;
const AT_ONCE = 5;
const REFRESH_MS = 5_000;
const PATH = "/api/queue/deliveries";
const STATES = [
  { value: "", label: "All" },
  { value: "waiting", label: "On their way" },
  { value: "delivered", label: "Delivered" },
  { value: "failed", label: "Failed" },
];
/** @type {import("../parts/filters.js").Field[]} */
const FIELDS = [
  { name: "asset", label: "Photo id", type: "search", placeholder: "24 hex digits" },
  { name: "notifier", label: "Notifier" },
];

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view(context) {
  const list = new DeliveriesView(context);
  return { element: list.element, title: "Deliveries", ready: list.load(), update: list.update, dispose: list.dispose };
}

class DeliveriesView {
  element;
  #context;
  #query;
  #filters;
  #tabs;
  #table;
  #pager;
  #news = h("button", {
    type: "button",
    class: "news quiet",
    hidden: true,
    onclick: () => (this.#query.get("cursor") ? this.#context.setQuery({ cursor: null }) : this.load()),
  });
  #latest = new Latest();
  /** @type {any} the page that is shown */ #page = null;
  #hasFailed = false;
  #ends;

  /** @param {import("../router.js").Context} context */
  constructor(context) {
    const { query, setQuery, mayChange } = context;
    this.#context = context;
    this.#query = query;
    this.#filters = new Filters(FIELDS, query, setQuery);
    this.#pager = new Pager(setQuery);
    this.#tabs = new Tabs("States", STATES, (state) => setQuery({ state, cursor: null }));
    this.#table = new DataTable({
      caption: "Deliveries, newest first",
      columns: this.#columns(),
      key: ({ deliveryId }) => deliveryId,
      href: hrefOf,
      empty: {
        title: "No deliveries found",
        text: "Events for durable notifiers, like webhooks, are kept here for seven days.",
      },
    });
    this.#table.element.classList.add("deliveries-table");
    const all = mayChange && h("button", { type: "button", onclick: () => this.#sendAll() }, "Send all failed again …");
    this.element = h(
      "div",
      { class: "view" },
      heading("Deliveries", this.#news, all),
      this.#tabs.element,
      this.#filters.element,
      this.#table.element,
      this.#pager.element,
    );
    this.#ends = [
      every(REFRESH_MS, () => this.#refresh()),
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
    this.load();
  };

  get #filter() {
    const state = this.#query.get("state");
    return { ...(state && { state }), ...this.#filters.values(this.#query) };
  }

  load() {
    this.#page = null;
    this.#news.hidden = true;
    this.#table.loading();
    this.#tabs.show(this.#query.get("state") ?? "", (state) =>
      withQuery("/console/deliveries", { ...this.#filters.values(this.#query), state }),
    );
    return this.#latest.run((signal) => this.#ask(signal), {
      done: (page) => this.#show(page),
      failed: (error) => {
        this.#hasFailed = error.status === 0 || error.status >= 500;
        this.#table.fail(error, () => this.load());
      },
    });
  }

  /** @param {AbortSignal} signal */
  async #ask(signal) {
    const cursor = this.#query.get("cursor");
    return {
      ...(await this.#context.api.get(PATH, { query: { ...this.#filter, limit: LIMIT, cursor }, signal })),
      cursor,
    };
  }

  /** @param {any} page */
  #show(page) {
    this.#page = page;
    this.#hasFailed = false;
    const { items, cursor, nextCursor } = page;
    this.#table.show(items);
    this.#pager.show({ cursor, nextCursor, count: items.length });
  }

  #refresh() {
    const page = this.#page;
    if (!page)
      return (
        this.#hasFailed &&
        this.#latest.run((signal) => this.#ask(signal), { done: (found) => this.#show(found), failed: () => {} })
      );
    return this.#latest.run((signal) => this.#ask(signal), {
      done: (fresh) => {
        if (this.#page !== page) return;
        if (!page.items.length) return this.#show(fresh);
        const readTo = fresh.nextCursor ? (fresh.items.at(-1)?.at ?? "9") : "";
        const { rows, added, unlisted } = merged(page.items, fresh.items, {
          key: ({ deliveryId }) => deliveryId,
          at: ({ at }) => at,
          readTo,
        });
        page.items = rows;
        this.#table.show(rows);
        this.#news.textContent = newsWords(page.cursor ? 0 : added, unlisted, added < LIMIT);
        this.#news.hidden = !this.#news.textContent;
      },
      failed: (error) => this.#table.stale(error),
    });
  }

  /** @returns {import("../parts/table.js").Column<any>[]} */
  #columns() {
    const { api, mayChange } = this.#context;
    return [
      { title: "State", class: "nowrap state-cell", cell: deliveryBadge },
      { title: "Notifier", class: "nowrap notifier-cell", cell: ({ notifier }) => notifier },
      { title: "Response", class: "grow response-cell", cell: responseWords },
      {
        title: "Photo",
        class: "nowrap photo-id-cell",
        cell: (each) => h("a", { href: hrefOf(each), title: each.assetId }, h("code", {}, each.assetId.slice(-8))),
      },
      { title: "Attempts", align: "end", class: "attempts-cell", cell: ({ attempts }) => number(attempts) },
      { title: "Queued", align: "end", class: "nowrap queued-cell", cell: ({ at }) => time(at) },
      { title: "Ended", align: "end", class: "nowrap ended-cell", cell: ({ finishedAt }) => time(finishedAt) },
      ...(mayChange
        ? [
            {
              title: "Actions",
              class: "nowrap actions-cell",
              cell: (/** @type {any} */ each) => sendAgainButton(api, each, () => this.#refresh()),
            },
          ]
        : []),
    ];
  }

  /** Send all failed deliveries of the filter again. */
  async #sendAll() {
    const { api } = this.#context;
    const { state: _, ...filter } = /** @type {Record<string, string>} */ (this.#filter);
    const page = (/** @type {string | null} */ cursor, /** @type {AbortSignal} */ signal) =>
      api.get(PATH, { query: { ...filter, state: "failed", limit: CHUNK, cursor }, signal });
    const done = await doInChunks({
      title: "Send all failed deliveries again?",
      text: "Each event is sent to its notifier again with the same id, so a receiver can recognize an event that it already has.",
      verb: "Send",
      past: "queued again",
      things: (count, isExact = true) =>
        `${isExact ? "" : "at least "}${number(count)} ${count === 1 ? "delivery" : "deliveries"}`,
      scope: Object.entries(filter).map(([name, value]) => h("span", { class: "chip" }, h("b", {}, name), " ", value)),
      async preview(signal) {
        let found = await page(null, signal);
        while (!found.items.length && found.nextCursor) found = await page(found.nextCursor, signal);
        return {
          count: found.items.length,
          isExact: !found.nextCursor,
          sample: found.items.slice(0, 5).map(sampleRow),
        };
      },
      chunk: (cursor, signal) => sendPage(api, page, cursor, signal),
    });
    if (done) this.load();
  }
}

/**
 * @param {import("../api.js").Api} api
 * @param {(cursor: string | null, signal: AbortSignal) => Promise<any>} page
 * @param {string | null} cursor
 * @param {AbortSignal} signal
 * @returns {Promise<import("../parts/chunks.js").Chunk>}
 */
async function sendPage(api, page, cursor, signal) {
  const { items, nextCursor } = await page(cursor, signal);
  const refused = /** @type {{jobId: string, message: string}[]} */ ([]);
  let skipped = 0;
  const send = async (/** @type {any} */ { deliveryId, assetId }) => {
    try {
      await api.post(`${PATH}/${encodeURIComponent(deliveryId)}/retry`);
    } catch (/** @type {any} */ error) {
      if (error.status === 404) skipped += 1;
      else if (error.status === 409) refused.push({ jobId: assetId, message: error.message });
      else throw error;
    }
  };
  for (let first = 0; first < items.length; first += AT_ONCE)
    await Promise.all(items.slice(first, first + AT_ONCE).map(send));
  return { done: items.length - skipped - refused.length, skipped, refused, nextCursor };
}

/** @param {any} delivery */
function hrefOf({ assetId }) {
  return `/console/jobs/${encodeURIComponent(assetId)}`;
}

/** @param {any} delivery */
function sampleRow({ notifier, assetId, reason, at }) {
  return h(
    "span",
    { class: "sample-row" },
    notifier,
    h("span", { class: "soft" }, ` · photo ${assetId.slice(-8)} · `, time(at)),
    reason && h("span", { class: "soft sample-reason" }, reason),
  );
}
