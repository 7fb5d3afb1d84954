/** The processes of the service, with the job of each slot; a process can be drained. */

import { fill, h } from "../dom.js";
import { confirmed } from "../parts/dialog.js";
import { Keyed, setText } from "../parts/keyed.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { emptyState, errorState, heading, skeleton } from "../parts/states.js";
import { bytes, number, time } from "../parts/time.js";
import { acting, toast } from "../parts/toast.js";

const EVERY_MS = 4_000;
const DELIVERIES = "notifications"; // the queue
const MOST_ROWS = 8; // of idle slots
const SKEW_MS = 1_000; // a larger difference is shown

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view(context) {
  const latest = new Latest();
  const summary = h("p", { class: "soft" }, " ");
  const grid = h("div", { class: "processes" });
  const note = h("div", { class: "card" }, skeleton(6));
  const cards = new Keyed(
    grid,
    ({ id }) => id,
    () => new ProcessCard(context, load),
  );
  function load() {
    return latest.run((signal) => context.api.get("/api/processes", { signal }), {
      done: ({ items }) => {
        setText(summary, summed(items));
        cards.show(items);
        note.hidden = items.length > 0;
        fill(
          note,
          items.length
            ? null
            : emptyState(
                "No process has sent a heartbeat.",
                "Each process sends one to Redis every few seconds. Check that Redis is running.",
              ),
        );
      },
      failed: (error) => {
        note.hidden = false;
        fill(note, errorState(error, load));
      },
    });
  }
  const stop = every(EVERY_MS, load);
  return {
    element: h("div", { class: "view" }, heading("Processes"), summary, grid, note),
    title: "Processes",
    dispose: () => (stop(), latest.dispose()),
  };
}

/** @param {any[]} items */
function summed(items) {
  const alive = items.filter(({ isAlive }) => isAlive);
  const all = alive.reduce((sum, { concurrency }) => sum + (concurrency ?? 0), 0);
  const used = alive.reduce((sum, process) => sum + usedOf(process), 0);
  const versions = new Set(alive.map(({ version }) => version));
  const mixed = versions.size > 1 ? ` Versions differ: ${[...versions].join(", ")}.` : "";
  return `${number(alive.length)} alive, ${number(used)} of ${number(all)} slots in use.${mixed}`;
}

class ProcessCard {
  element = h("article", { class: "card process" });
  #context;
  #reload;
  #process = /** @type {any} */ (null);
  #head = h("div", { class: "process-head" });
  #button = h("button", { type: "button", onclick: () => this.#toggleDrain() });
  #facts = h("dl", { class: "facts" });
  #slots = h("ul", { class: "slots", "aria-label": "Slots" });
  #running;
  #idle = h("p", { class: "soft small" });

  /** @param {import("../router.js").Context} context @param {() => void} reload */
  constructor(context, reload) {
    this.#context = context;
    this.#reload = reload;
    this.#running = new Keyed(
      this.#slots,
      ({ jobId, attempt, queue, idle }) => `${queue} ${jobId} ${attempt} ${idle}`,
      slotItem,
    );
    fill(
      this.element,
      h("div", { class: "process-top" }, this.#head, context.mayChange && this.#button),
      this.#facts,
      this.#slots,
      this.#idle,
    );
  }

  /** @param {any} process */
  show(process) {
    this.#process = process;
    const { id, host, pid, role, isAlive, isThisOne, isDraining, slots = [], concurrency } = process;
    this.element.classList.toggle("is-ended", !isAlive);
    this.element.setAttribute("aria-label", `Process ${pid} on ${host}`);
    fill(
      this.#head,
      h("h2", { title: id }, `${host} `, h("span", { class: "soft number" }, pid)),
      badges(isAlive, isDraining, isThisOne),
    );
    fill(
      this.#facts,
      facts(process).map(([name, value, kind]) =>
        h("div", {}, h("dt", {}, name), h("dd", { class: kind ?? "" }, value)),
      ),
    );
    // A row for each slot, so that cards keep their height.
    const idle = isAlive && concurrency <= MOST_ROWS ? Math.max(0, concurrency - usedOf(process)) : 0;
    this.#running.show([...slots, ...Array.from({ length: idle }, (_, at) => ({ idle: at }))]);
    this.#slots.hidden = !slots.length && !idle;
    setText(this.#idle, idleWords(process, slots.length));
    this.#button.hidden = !isAlive || role === "web";
    setText(this.#button, isDraining ? "Resume" : "Drain");
    this.#button.setAttribute("aria-label", `${isDraining ? "Resume" : "Drain"} process ${pid} on ${host}`);
  }

  async #toggleDrain() {
    const { id, host, pid, isDraining, slots = [] } = this.#process;
    const text = slots.length
      ? `It takes no new jobs. Running jobs (${number(slots.length)}) finish.`
      : "It takes no new jobs until it is resumed or restarted.";
    if (!isDraining && !(await confirmed({ title: `Drain process ${pid} on ${host}?`, text, confirm: "Drain" })))
      return;
    await this.#send(id, isDraining ? "resume" : "drain", true);
  }

  /** @param {string} id @param {"drain" | "resume"} what @param {boolean} [isUndoable] */
  #send(id, what, isUndoable) {
    return acting(this.#button, async () => {
      await this.#context.api.post(`/api/processes/${encodeURIComponent(id)}/${what}`);
      const undo = () => this.#send(id, what === "drain" ? "resume" : "drain");
      toast(
        what === "drain"
          ? "The process starts to drain within seconds."
          : "The process takes jobs again within seconds.",
        {
          kind: "good",
          undo: (isUndoable && undo) || undefined,
        },
      );
      this.#reload();
    });
  }
}

/** @param {boolean} isAlive @param {boolean} isDraining @param {boolean} isThisOne */
function badges(isAlive, isDraining, isThisOne) {
  return [
    h("span", { class: `badge ${isAlive ? "good" : "bad"}` }, isAlive ? "alive" : "no heartbeat"),
    isDraining && h("span", { class: "badge warn" }, "draining"),
    isThisOne && h("span", { class: "badge" }, "answers this page"),
  ];
}

/** @param {any} process @returns {[string, any, string?][]} */
function facts({ role, version, startedAt, seenAt, isAlive, sockets, clockSkewMs, memoryBytes }) {
  const isSkewed = Math.abs(clockSkewMs ?? 0) > SKEW_MS;
  return [
    ["Role", role ?? "–"],
    ["Started", time(startedAt)],
    ...(isAlive ? [] : /** @type {[string, any, string?][]} */ ([["Last seen", time(seenAt), "bad"]])),
    ["Version", version ?? "–"],
    ["Memory", bytes(memoryBytes)],
    ["Sockets", number(sockets)],
    [
      "Clock",
      clockSkewMs == null ? "–" : `${clockSkewMs > 0 ? "+" : ""}${number(Math.round(clockSkewMs))} ms`,
      isSkewed ? "warn" : "",
    ],
  ];
}

/** The busy slots for photos, without those for deliveries. @param {any} process */
function usedOf({ busy, slots = [] }) {
  return busy ?? slots.filter((/** @type {any} */ { queue }) => queue !== DELIVERIES).length;
}

/** @param {any} process @param {number} running */
function idleWords(process, running) {
  const { role, isAlive, isDraining, concurrency } = process;
  if (!isAlive)
    return running ? "Other processes continue its jobs." : "It has ended, or lost its connection to Redis.";
  if (role === "web") return "It runs no jobs.";
  if (isDraining) return running ? "It finishes its running jobs." : "It has no jobs left: it can be stopped.";
  const idle = Math.max(0, concurrency - usedOf(process));
  return idle ? `${number(idle)} of ${number(concurrency)} slots idle` : `All ${number(concurrency)} slots in use`;
}

/** @param {any} slot */
function slotItem({ jobId, assetId, queue, provider, attempt, since, idle }) {
  if (idle !== undefined) return h("li", { class: "soft" }, "idle");
  const name = assetId ?? jobId;
  const isJob = queue !== DELIVERIES;
  return h(
    "li",
    {},
    isJob
      ? h("a", { class: "mono", href: `/console/jobs/${encodeURIComponent(jobId)}` }, name)
      : h("span", { class: "mono" }, name),
    h(
      "span",
      { class: "soft" },
      [isJob ? provider : `delivery ${provider ?? ""}`, attempt > 1 && `attempt ${attempt}`]
        .filter(Boolean)
        .join(" · "),
    ),
    h("span", { class: "number" }, time(since, "for")),
  );
}
