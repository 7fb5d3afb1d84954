/**
 * Shows the view of the present address. Links to /console... on the page change the view without loading the page. A
 * view is a function of its context:
 *
 * @typedef {object} Context the argument of a view
 * @property {Record<string, string>} params parts of the path, like the id of a job
 * @property {URLSearchParams} query of the address: filters, cursor
 * @property {import("./api.js").Api} api
 * @property {import("./live.js").Live} live
 * @property {import("./session.js").SessionKeeper} session
 * @property {boolean} mayChange false for the role operator-read: leave out buttons that change something
 * @property {any} about of GET /api/about
 * @property {(address: string, options?: {replace?: boolean}) => void} navigate
 * @property {(changes: Record<string, string | number | null>, options?: {replace?: boolean, state?: object}) => void} setQuery
 *   null and "" leave a name out; state: for history.state
 * @property {(title: string) => void} setTitle
 *
 * @typedef {object} View
 * @property {HTMLElement} element
 * @property {string} title
 * @property {(query: URLSearchParams) => void} [update] called when only the query has changed; without it the view is built again
 * @property {Promise<unknown>} [ready] resolves when the view is high enough to restore the scroll position
 * @property {() => void} [dispose]
 *
 * @typedef {{path: string, view: (context: Context) => View}} Route path: like "/console/jobs/:id"
 */

import { fill } from "./dom.js";

export class Router {
  #routes;
  #outlet;
  #context;
  #onShow;
  /** @type {View | null} */ #shown = null;
  #path = "";
  #href = "";

  /**
   * @param {Route[]} routes the last one is for all other addresses
   * @param {HTMLElement} outlet
   * @param {object} context passed to every view
   * @param {(path: string, title: string) => void} onShow
   */
  constructor(routes, outlet, context, onShow) {
    this.#routes = routes.map((route) => ({ ...route, pattern: patternOf(route.path) }));
    this.#outlet = outlet;
    this.#context = context;
    this.#onShow = onShow;
  }

  start() {
    history.scrollRestoration = "manual";
    addEventListener("popstate", this.#back);
    document.addEventListener("click", this.#follow);
    this.#show();
    this.#scroll();
  }

  stop() {
    removeEventListener("popstate", this.#back);
    document.removeEventListener("click", this.#follow);
    this.#shown?.dispose?.();
    this.#shown = null;
    closeDialog();
    fill(this.#outlet);
  }

  /** @param {string} address @param {{replace?: boolean}} [options] */
  navigate = (address, { replace = false } = {}) => {
    const { href } = new URL(address, location.href);
    if (!replace) keepScroll();
    history[replace || href === location.href ? "replaceState" : "pushState"]({}, "", href);
    this.#show();
    window.scrollTo(0, 0);
    this.#focus();
  };

  /** @param {Record<string, string | number | null>} changes @param {{replace?: boolean, state?: object}} [options] */
  setQuery = (changes, { replace = false, state = {} } = {}) => {
    const url = new URL(location.href);
    for (const [name, value] of Object.entries(changes)) {
      if (value == null || value === "") url.searchParams.delete(name);
      else url.searchParams.set(name, String(value));
    }
    if (url.href === location.href) return;
    if (!replace) keepScroll();
    history[replace ? "replaceState" : "pushState"](state, "", url);
    this.#update();
  };

  #back = () => {
    // The fragment of the skip link changes no view.
    if (location.href.split("#")[0] === this.#href) return;
    const isSameView = location.pathname === this.#path;
    if (isSameView) this.#update();
    else this.#show();
    this.#scroll();
    if (!isSameView) this.#focus();
  };

  #update() {
    if (!this.#shown?.update) return this.#show();
    this.#href = location.href.split("#")[0];
    this.#shown.update(new URLSearchParams(location.search));
  }

  #show() {
    this.#path = location.pathname;
    this.#href = location.href.split("#")[0];
    this.#shown?.dispose?.();
    closeDialog();
    const { view, params } = this.#find();
    const { navigate, setQuery } = this;
    const context = {
      ...this.#context,
      params,
      query: new URLSearchParams(location.search),
      navigate,
      setQuery,
      setTitle,
    };
    this.#shown = view(/** @type {any} */ (context));
    setTitle(this.#shown.title);
    fill(this.#outlet, this.#shown.element);
    this.#onShow(this.#path, this.#shown.title);
  }

  #find() {
    for (const { pattern, view } of this.#routes) {
      const found = pattern.exec(location.pathname);
      if (found) return { view, params: decoded(found.groups ?? {}) };
    }
    return { view: this.#routes[this.#routes.length - 1].view, params: {} };
  }

  /** Restore the scroll position as soon as the view is high enough. */
  async #scroll() {
    const shown = this.#shown;
    const { scroll = 0 } = history.state ?? {};
    await shown?.ready?.catch?.(() => {});
    if (scroll && shown === this.#shown) window.scrollTo(0, scroll);
  }

  #focus() {
    const heading = this.#outlet.querySelector("h1");
    heading?.setAttribute("tabindex", "-1");
    /** @type {HTMLElement} */ (heading ?? this.#outlet).focus({ preventScroll: true });
  }

  /** @param {MouseEvent} event */
  #follow = (event) => {
    const link = /** @type {Element} */ (event.target).closest?.("a");
    if (
      !link ||
      event.defaultPrevented ||
      event.button ||
      event.ctrlKey ||
      event.metaKey ||
      event.shiftKey ||
      event.altKey
    )
      return;
    if (
      link.target ||
      link.download ||
      link.origin !== location.origin ||
      !/^\/console(\/|$)/.test(link.pathname) ||
      link.hash
    )
      return;
    event.preventDefault();
    this.navigate(link.href);
  };
}

/** @param {string} title */
function setTitle(title) {
  document.title = `${title} · Console`;
}

/** Close a dialog of the former view. */
function closeDialog() {
  /** @type {HTMLDialogElement | null} */ (document.querySelector("dialog[open]"))?.close();
}

function keepScroll() {
  history.replaceState({ ...history.state, scroll: Math.round(scrollY) }, "");
}

/** @param {string} path */
function patternOf(path) {
  return new RegExp(`^${path.replace(/:(\w+)/g, "(?<$1>[^/]+)")}/?$`);
}

/** @param {Record<string, string>} groups */
function decoded(groups) {
  return Object.fromEntries(Object.entries(groups).map(([name, text]) => [name, unescaped(text)]));
}

/** @param {string} text */
function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
