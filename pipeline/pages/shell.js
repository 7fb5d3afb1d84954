/** The frame around the views of the console: navigation, age of the numbers, signed-in user. */

import { fill, h } from "./dom.js";
import { showKeys } from "./parts/keyboard.js";
import { icon } from "./parts/icons.js";
import { compact } from "./parts/time.js";

/** The views in the order of the navigation. key: after "g". @type {{path: string, name: string, icon: string, key: string}[]} */
export const VIEWS = [
  { path: "/console", name: "Overview", icon: "overview", key: "o" },
  { path: "/console/jobs", name: "Jobs", icon: "jobs", key: "j" },
  { path: "/console/failures", name: "Failures", icon: "failures", key: "f" },
  { path: "/console/deliveries", name: "Deliveries", icon: "deliveries", key: "d" },
  { path: "/console/processes", name: "Processes", icon: "processes", key: "p" },
  { path: "/console/plugins", name: "Plugins", icon: "plugins", key: "l" },
  { path: "/console/users", name: "Users", icon: "users", key: "u" },
  { path: "/console/audit", name: "Audit", icon: "audit", key: "a" },
];
const STATES = {
  connecting: ["busy", "Connecting"],
  live: ["good", "Live"],
  polling: ["good", "Every 5 s"],
  away: ["bad", "No answer"],
  hidden: ["", "Paused"],
};

export class Shell {
  #header;
  #live;
  #links = new Map();
  #state = h("span", { class: "live-state" });
  #menu;

  /**
   * @param {HTMLElement} header
   * @param {import("./live.js").Live} live
   * @param {import("./session.js").SessionKeeper} session
   * @param {any} about
   */
  constructor(header, live, session, about) {
    this.#header = header;
    this.#live = live;
    this.#menu = h(
      "button",
      { type: "button", class: "menu", "aria-expanded": "false", "aria-controls": "views", onclick: this.#toggleMenu },
      icon("menu"),
      "Menu",
    );
    const nav = h(
      "nav",
      { id: "views", class: "views", "aria-label": "Views" },
      h(
        "ul",
        {},
        VIEWS.map((view) => h("li", {}, this.#link(view))),
      ),
      foot(session, about.version),
    );
    fill(
      header,
      h(
        "div",
        { class: "shell-top" },
        h("a", { class: "brand", href: "/console" }, "Console"),
        this.#state,
        this.#menu,
      ),
      nav,
    );
    live.addEventListener("state", this.#showState);
    live.addEventListener("overview", this.#showCounts);
    this.#showState();
  }

  dispose() {
    this.#live.removeEventListener("state", this.#showState);
    this.#live.removeEventListener("overview", this.#showCounts);
    fill(this.#header);
  }

  /** Mark the present view. @param {string} path */
  moved(path) {
    const view = [...this.#links.keys()]
      .filter((each) => path.replace(/\/$/, "") === each || (each !== "/console" && path.startsWith(`${each}/`)))
      .pop();
    for (const [each, { link }] of this.#links) {
      if (each === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.#closeMenu();
  }

  /** @param {{path: string, name: string, icon: string, key: string}} view */
  #link({ path, name, icon: picture, key }) {
    const badge = h("span", { class: "count number" });
    const link = h("a", { href: path, "aria-keyshortcuts": `g ${key}` }, icon(picture), h("span", {}, name), badge);
    this.#links.set(path, { link, badge });
    return link;
  }

  #toggleMenu = () => {
    const isOpen = this.#header.classList.toggle("is-open");
    this.#menu.setAttribute("aria-expanded", String(isOpen));
  };

  #closeMenu() {
    this.#header.classList.remove("is-open");
    this.#menu.setAttribute("aria-expanded", "false");
  }

  #showState = () => {
    const [kind, word] = STATES[this.#live.state];
    fill(this.#state, h("span", { class: `dot ${kind}` }), word);
    this.#state.title = this.#live.problem;
  };

  #showCounts = () => {
    const { queues = [], plugins } = this.#live.overview;
    const [jobs, deliveries] = queues; // the queue of photos is the first
    const open = (/** @type {any} */ queue) =>
      queue && !queue.error ? queue.waiting + queue.delayed + queue.active : 0;
    this.#badge("/console/jobs", open(jobs));
    this.#badge("/console/deliveries", open(deliveries));
    this.#badge("/console/failures", jobs?.failed ?? 0, "bad");
    this.#badge("/console/plugins", plugins?.quarantined?.length ?? 0, "bad");
  };

  /** @param {string} path @param {number} count @param {string} [kind] */
  #badge(path, count, kind = "") {
    const { badge } = this.#links.get(path);
    const text = count ? compact(count) : "";
    if (badge.textContent !== text) badge.textContent = text;
    badge.className = `count number ${kind}`;
  }
}

/** The signed-in user, and what concerns the whole console. @param {import("./session.js").SessionKeeper} session @param {string} version */
function foot(session, version) {
  const { userId, role } = /** @type {import("./session.js").Session} */ (session.current);
  return h(
    "div",
    { class: "shell-foot" },
    h(
      "div",
      { class: "who" },
      h("span", { class: "who-name", title: userId }, userId),
      h("span", { class: "soft small" }, role === "admin" ? "can make changes" : "can only view"),
    ),
    h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "quiet", onclick: showKeys, "aria-keyshortcuts": "?" }, "Keys"),
      h("button", { type: "button", class: "quiet", onclick: () => session.signOut() }, "Sign out"),
      h("a", { class: "small", href: "/" }, "Photos"),
    ),
    h("span", { class: "soft small" }, `Version ${version}`),
  );
}
