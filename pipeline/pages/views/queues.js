/** The queues, each with its numbers and the button that pauses it. */

import { fill, h } from "../dom.js";
import { confirmed } from "../parts/dialog.js";
import { icon } from "../parts/icons.js";
import { Keyed } from "../parts/keyed.js";
import { duration, large } from "../parts/time.js";
import { acting, toast } from "../parts/toast.js";

const NAMES = /** @type {Record<string, string>} */ ({ "ai-processing": "Photos", notifications: "Deliveries" });

export class QueueCards {
  element = h("section", { class: "card queues", "aria-label": "Queues" });
  #cards;

  /** @param {import("../router.js").Context} context */
  constructor(context) {
    this.#cards = new Keyed(
      this.element,
      ({ name }) => name,
      () => new QueueCard(context),
    );
  }

  /** @param {any[]} queues */
  show(queues) {
    this.#cards.show(queues);
  }
}

class QueueCard {
  element = h("div", { class: "queue" });
  #context;
  #queue = /** @type {any} */ (null);
  #head = h("div", { class: "queue-head" });
  #facts = h("div", {});
  #button = h("button", { type: "button", onclick: () => this.#ask() });

  /** @param {import("../router.js").Context} context */
  constructor(context) {
    this.#context = context;
    fill(this.element, this.#head, this.#facts, context.mayChange && this.#button);
  }

  /** @param {any} queue */
  show(queue) {
    const wasPaused = this.#queue?.paused;
    this.#queue = queue;
    const { name, error, paused } = queue;
    const badge = error ? ["bad", "unknown"] : paused ? ["warn", "paused"] : ["good", "open"];
    fill(
      this.#head,
      h("h2", {}, this.#title),
      h("span", { class: `badge ${badge[0]}` }, badge[1]),
      h("code", { class: "soft" }, name),
    );
    fill(this.#facts, error ? h("p", { class: "soft small" }, error) : counts(queue));
    this.#button.hidden = Boolean(error);
    if (wasPaused === paused) return;
    const word = paused ? "Resume" : "Pause";
    this.#button.setAttribute("aria-label", `${word} ${this.#title}`);
    fill(this.#button, icon(paused ? "play" : "pause"), word);
  }

  get #title() {
    return NAMES[this.#queue.name] ?? this.#queue.name;
  }

  async #ask() {
    const { paused, waiting } = this.#queue;
    const question = paused
      ? {
          title: `Resume ${this.#title}?`,
          text: "jobs wait. The processes take them again at once.",
          confirm: "Resume",
          count: waiting,
        }
      : {
          title: `Pause ${this.#title}?`,
          text: "The processes take no more jobs from this queue. Running jobs finish. New jobs are accepted and wait.",
          confirm: "Pause",
        };
    if (!(await confirmed(question))) return;
    const undo = () => this.#change(!paused);
    if (await this.#change(paused))
      toast(paused ? `${this.#title}: resumed.` : `${this.#title}: paused.`, { kind: "good", undo });
  }

  /** @param {boolean} isPaused the present state, which is reversed */
  #change(isPaused) {
    const { api, live } = this.#context;
    return acting(this.#button, async () => {
      await api.post(`/api/queue/${isPaused ? "resume" : "pause"}?queue=${encodeURIComponent(this.#queue.name)}`);
      live.refresh();
      return true;
    });
  }
}

/** @param {any} queue */
function counts({ waiting, delayed, active, failed, oldestReadySeconds }) {
  const facts = [
    ["Waiting", large(waiting)],
    ["Oldest", oldestReadySeconds == null ? "–" : duration(oldestReadySeconds * 1000, true)],
    ["Running", large(active)],
    ["Delayed", large(delayed)],
    ["Failed", large(failed)],
  ];
  return h(
    "dl",
    { class: "counts number" },
    facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}
