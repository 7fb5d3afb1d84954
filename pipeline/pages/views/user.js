/** The data of one user, and an operator's actions. */

import { fill, h } from "../dom.js";
import { runBulk } from "../parts/bulk.js";
import { confirmed } from "../parts/dialog.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { errorState, heading, skeleton } from "../parts/states.js";
import { bytes, number, time } from "../parts/time.js";
import { acting, toast } from "../parts/toast.js";

const EVERY_MS = 5_000;
const STATUSES = {
  processing: "in progress",
  active: "complete",
  partial: "partial",
  failed: "failed",
  draft: "draft",
  archived: "archived",
};

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view(context) {
  const { api, params, mayChange } = context;
  const latest = new Latest();
  const body = h("div", { class: "stack" }, h("div", { class: "card" }, skeleton(6)));
  const act = mayChange ? actions(context, () => load()) : h("div", {});
  act.hidden = true;
  const note = h("div", { class: "card", hidden: true });
  let shown = "";
  const load = () =>
    latest.run((signal) => api.get(`/api/users/${encodeURIComponent(params.sub)}`, { signal }), {
      done: (user) => {
        note.hidden = true;
        // Buttons that are replaced under the pointer could not be clicked.
        if (shown === (shown = JSON.stringify(user))) return;
        fill(body, erasureBanner(user.erase), cards(user));
        act.hidden = false;
      },
      failed: (error) => {
        // The view stays, with its buttons.
        if (!shown) fill(body);
        fill(note, errorState(error, load));
        note.hidden = false;
      },
    });
  const stop = every(EVERY_MS, load);
  const jobs = `/console/jobs?${new URLSearchParams({ user: params.sub })}`;
  return {
    element: h(
      "div",
      { class: "view" },
      h("p", { class: "crumb small" }, h("a", { href: "/console/users" }, "Users")),
      heading(params.sub, h("a", { class: "button", href: jobs }, "All jobs")),
      body,
      act,
      note,
    ),
    title: params.sub,
    dispose: () => (stop(), latest.dispose()),
  };
}

/** @param {any} erase */
function erasureBanner(erase) {
  if (!erase) return null;
  const isDone = erase.state === "done";
  const erased = `${number(erase.assets)} photos, ${number(erase.images)} images and ${number(erase.jobs)} jobs are erased.`;
  return h(
    "div",
    { class: `banner ${isDone ? "good" : ""}` },
    h("b", {}, isDone ? "Erased" : "Being erased"),
    h("span", {}, erased, erase.reason && ` The erasure waits: ${erase.reason}.`),
    time(erase.beganAt),
  );
}

/** @param {any} user */
function cards({
  assets,
  isComplete,
  bytes: stored,
  maxBytes,
  oldest,
  newest,
  waitingJobs,
  deadLetters,
  undelivered,
  socketsHere,
}) {
  const more = isComplete ? "" : "at least ";
  const counts = Object.entries(STATUSES)
    .filter(([status]) => assets[status])
    .map(([status, word]) => [word, number(assets[status])]);
  return h(
    "div",
    { class: "cards" },
    factCard("Photos", `${more}${number(assets.total)}`, [
      ...counts,
      ["Stored", maxBytes === null ? bytes(stored) : `${bytes(stored)} of ${bytes(maxBytes)}`],
      ["Newest", time(newest)],
      ["Oldest", time(oldest)],
    ]),
    factCard("Waiting jobs", number(waitingJobs), [
      ["Dead letters", number(deadLetters)],
      ["Undelivered", number(undelivered)],
      [
        "Connected",
        `${number(socketsHere)} ${socketsHere === 1 ? "connection" : "connections"} to the process that answered`,
      ],
    ]),
  );
}

/** @param {string} title @param {string} value @param {any[][]} facts */
function factCard(title, value, facts) {
  return h(
    "section",
    { class: "card system", "aria-label": title },
    h("div", {}, h("h2", { class: "tile-title small" }, title), h("p", { class: "tile-value number" }, value)),
    h(
      "dl",
      { class: "facts" },
      facts.map(([name, each]) => h("div", {}, h("dt", {}, name), h("dd", {}, each))),
    ),
  );
}

/** @param {import("../router.js").Context} context @param {() => unknown} load */
function actions({ api, params: { sub } }, load) {
  const filter = { user: sub, state: "waiting" };
  const bulk = async (
    /** @type {"cancel" | "postpone"} */ action,
    /** @type {string} */ title,
    /** @type {HTMLButtonElement} */ button,
  ) => {
    if (await acting(button, () => runBulk({ api, action, filter, title }))) load();
  };
  return h(
    "section",
    { class: "card stack", "aria-labelledby": "act-title" },
    h("h2", { id: "act-title" }, "Actions"),
    choice("Postpone waiting jobs", "They wait longer, so that other jobs run first.", "Postpone …", (button) =>
      bulk("postpone", `Postpone all waiting jobs of ${sub}?`, button),
    ),
    choice(
      "Cancel waiting jobs",
      "They end as failed; the photos stay and can be run again.",
      "Cancel jobs …",
      (button) => bulk("cancel", `Cancel all waiting jobs of ${sub}?`, button),
    ),
    choice(
      "Erase the user",
      "All photos, images and jobs are deleted. This cannot be undone. The user can still send new photos.",
      "Erase …",
      (button) => erase(api, sub, button, load),
      "danger",
    ),
  );
}

/** @param {string} title @param {string} text @param {string} label @param {(button: HTMLButtonElement) => unknown} act @param {string} [kind] */
function choice(title, text, label, act, kind = "") {
  return h(
    "div",
    { class: "act" },
    h("div", {}, h("h3", {}, title), h("p", { class: "soft small" }, text)),
    h(
      "button",
      { type: "button", class: kind, onclick: (/** @type {any} */ { currentTarget }) => act(currentTarget) },
      label,
    ),
  );
}

/** @param {import("../api.js").Api} api @param {string} sub @param {HTMLButtonElement} button @param {() => unknown} load */
async function erase(api, sub, button, load) {
  const text = "All photos with their images and results, jobs and deliveries are deleted. This cannot be undone.";
  if (!(await confirmed({ title: `Erase ${sub}?`, text, confirm: "Erase permanently", isDangerous: true, typed: sub })))
    return;
  await acting(button, async () => {
    const erasure = await api.delete(`/api/users/${encodeURIComponent(sub)}`);
    toast(
      erasure.state === "done"
        ? `Erased: ${number(erasure.assets)} photos, ${number(erasure.images)} images.`
        : "The erasure continues. This page shows its progress.",
      { kind: "good" },
    );
    load();
  });
}
