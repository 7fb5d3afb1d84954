/** The first view for a person on call: faults, waiting and finished work, and charts of the last hours. */

import { fill, h } from "../dom.js";
import { icon } from "../parts/icons.js";
import { Keyed } from "../parts/keyed.js";
import { heading } from "../parts/states.js";
import { duration, large, number, time } from "../parts/time.js";
import { Charts } from "./charts.js";
import { troublesOf } from "./health.js";
import { QueueCards } from "./queues.js";
import { systemCards } from "./system.js";

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view(context) {
  const { live, query } = context;
  const verdict = new Verdict(live);
  const tiles = new Tiles();
  const queues = new QueueCards(context);
  const system = h("section", { class: "cards", "aria-label": "Dependencies of the service" });
  const systems = new Keyed(system, ({ title }) => title, systemCard);
  const charts = new Charts(context);
  const grafana = h("span", {});
  const show = () => {
    const { overview } = live;
    verdict.show();
    // The first answer must not move what is visible already.
    if (overview || live.state === "away") element.classList.remove("is-empty");
    if (!overview) return;
    tiles.show(overview);
    queues.show(overview.queues ?? []);
    systems.show(systemCards(overview));
    if (overview.grafanaUrl && !grafana.hasChildNodes()) fill(grafana, grafanaLink(overview.grafanaUrl));
  };
  const parts = [verdict, tiles, queues, charts].map((part) => part.element);
  const element = h("div", { class: "view overview is-empty" }, heading("Overview", grafana), parts, system);
  live.addEventListener("overview", show);
  live.addEventListener("state", show);
  show();
  charts.update(query);
  return {
    element,
    title: "Overview",
    update: (changed) => charts.update(changed),
    dispose() {
      live.removeEventListener("overview", show);
      live.removeEventListener("state", show);
      charts.dispose();
    },
  };
}

/** @param {string} href */
function grafanaLink(href) {
  return h("a", { class: "button", href, target: "_blank", rel: "noreferrer" }, "Grafana");
}

/** One sentence, then the faults. */
class Verdict {
  element = h("section", { class: "verdict", "aria-label": "Health" });
  #live;
  #line = h("p", { class: "verdict-line", role: "status" });
  #list = h("ul", { class: "troubles" });
  #troubles;

  /** @param {import("../live.js").Live} live */
  constructor(live) {
    this.#live = live;
    this.#troubles = new Keyed(this.#list, ({ text, reason }) => `${text} ${reason}`, troubleItem);
    fill(this.element, this.#line, this.#list);
  }

  show() {
    const { overview, state, problem } = this.#live;
    const isAway = state === "away";
    const troubles = overview && !isAway ? troublesOf(overview) : [];
    const [kind, picture, words] = isAway
      ? ["bad", "warn", outageText(problem, overview)]
      : overview
        ? verdictOf(troubles)
        : ["", "overview", "Asking the service …"];
    const text = `${kind} ${words}`;
    this.element.parentElement?.classList.toggle("is-stale", isAway && Boolean(overview));
    // Set only when it changes, because a screen reader then reads it.
    if (this.#line.dataset.text !== text) fill(this.#line, icon(picture), h("span", {}, words));
    this.#line.dataset.text = text;
    this.#line.className = `verdict-line ${kind}`;
    this.#troubles.show(troubles);
    this.#list.hidden = !troubles.length;
  }
}

/** @param {string} problem @param {any} overview */
function outageText(problem, overview) {
  return overview
    ? `The service does not answer. These numbers are old. (${problem})`
    : `The overview cannot be read: ${problem}`;
}

/** @param {import("./health.js").Trouble[]} troubles @returns {[string, string, string]} */
function verdictOf(troubles) {
  const bad = troubles.filter(({ kind }) => kind === "bad").length;
  if (bad) return ["bad", "warn", bad === 1 ? "Something is broken." : `${bad} things are broken.`];
  if (troubles.length)
    return [
      "warn",
      "warn",
      troubles.length === 1
        ? "The service works, but one thing needs attention."
        : `The service works, but ${troubles.length} things need attention.`,
    ];
  return ["good", "good", "All is well."];
}

/** @param {import("./health.js").Trouble} trouble */
function troubleItem({ kind, text, todo, code, reason, nextTryAt, link }) {
  return h(
    "li",
    { class: kind },
    h("span", { class: `badge ${kind}` }, kind === "bad" ? "Broken" : "Check"),
    h(
      "div",
      {},
      h("p", { class: "trouble-text" }, text, nextTryAt && [" Next try ", time(nextTryAt, "until"), "."]),
      reason && h("p", { class: "soft small mono" }, reason),
      todo && h("p", { class: "soft small" }, todo, code && [" ", h("code", {}, code)]),
      link && h("p", { class: "small" }, h("a", { href: link.href }, link.text)),
    ),
  );
}

/** The most important numbers of the first queue. */
class Tiles {
  element;
  #tiles;

  constructor() {
    this.#tiles = {
      waiting: new Tile("Waiting", "/console/jobs?state=waiting"),
      running: new Tile("Running", "/console/jobs?state=active"),
      delayed: new Tile("Delayed", "/console/jobs?state=delayed"),
      ended: new Tile("Finished", "/console/jobs?state=completed"),
      failed: new Tile("Failed", "/console/failures"),
      processes: new Tile("Processes", "/console/processes"),
    };
    this.element = h(
      "section",
      { class: "tiles", "aria-label": "Now" },
      Object.values(this.#tiles).map(({ element }) => element),
    );
  }

  /** @param {any} overview */
  show({ queues: [jobs] = [], slots, workersAlive, processesAlive }) {
    const { waiting, running, delayed, ended, failed, processes } = this.#tiles;
    const unknown = !jobs || jobs.error ? "unknown" : "";
    waiting.show(
      large(jobs?.waiting),
      unknown ||
        (!jobs?.waiting
          ? "no job waits"
          : jobs.oldestReadySeconds == null
            ? "no job can start yet"
            : `oldest: ${duration(jobs.oldestReadySeconds * 1000, true)}`),
    );
    running.show(
      number(jobs?.active),
      slots?.all != null ? `${number(slots.used)} of ${number(slots.all)} slots` : "",
      slots?.all ? slots.used / slots.all : undefined,
    );
    delayed.show(large(jobs?.delayed), unknown || "start later");
    ended.show(large(jobs?.endedInLastMinute), unknown || "in the last minute");
    failed.show(
      large(jobs?.failed),
      unknown || (jobs?.failed ? "see why" : "none"),
      undefined,
      jobs?.failed ? "bad" : "",
    );
    processes.show(
      number(processesAlive),
      workersAlive == null ? "unknown" : `${number(workersAlive)} ${workersAlive === 1 ? "worker" : "workers"}`,
      undefined,
      workersAlive === 0 ? "bad" : "",
    );
  }
}

class Tile {
  element;
  #value = h("span", { class: "tile-value number" }, "–");
  #note = h("span", { class: "tile-note soft small" }, " ");
  #bar = h("span", { class: "tile-bar", hidden: true }, h("span", {}));

  /** @param {string} title @param {string} href */
  constructor(title, href) {
    this.element = h(
      "a",
      { class: "tile card", href },
      h("span", { class: "tile-title small" }, title),
      this.#value,
      this.#note,
      this.#bar,
    );
  }

  /** @param {string} value @param {string} note @param {number} [share] of a bar @param {string} [kind] */
  show(value, note, share, kind = "") {
    if (this.#value.textContent !== value) this.#value.textContent = value;
    if (this.#note.textContent !== note) this.#note.textContent = note || " ";
    this.#value.className = `tile-value number ${kind}`;
    this.#bar.hidden = share === undefined;
    if (share !== undefined) this.#bar.firstElementChild.style.width = `${Math.min(100, 100 * share)}%`;
  }
}

/** @param {import("./system.js").Card} card */
function systemCard({ title, isUp, state, facts }) {
  return h(
    "section",
    { class: "card system", "aria-label": title },
    h("div", { class: "row" }, h("h2", {}, title), h("span", { class: `badge ${isUp ? "good" : "bad"}` }, state)),
    h(
      "dl",
      { class: "facts" },
      facts.map(([name, value, kind]) =>
        h("div", { class: name === "Error" ? "whole" : "" }, h("dt", {}, name), h("dd", { class: kind ?? "" }, value)),
      ),
    ),
  );
}
