/** The users with the most jobs, and a search for a user. */

import { fill, h } from "../dom.js";
import { addKeys } from "../parts/keyboard.js";
import { Keyed, setText } from "../parts/keyed.js";
import { Latest } from "../parts/latest.js";
import { every } from "../parts/refresh.js";
import { emptyState, errorState, heading, skeleton } from "../parts/states.js";
import { number } from "../parts/time.js";

const EVERY_MS = 5_000;
const FAIRNESS = /** @type {Record<string, string>} */ ({
  fifo: "Jobs run in the order of arrival: a user with many jobs delays the others (QUEUE_FAIRNESS=user shares evenly).",
  user: "Users are served in rotation: a user with many jobs does not delay the others.",
});

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view({ api, navigate }) {
  const latest = new Latest();
  const fairness = h("p", { class: "soft" }, " ");
  const list = h("ol", { class: "user-bars" });
  const found = h("div", { class: "stack", hidden: true }, fairness, list);
  const wait = skeleton(5);
  const note = h("div", { hidden: true });
  const bars = new Keyed(list, ({ userId }) => userId, userBar);
  const load = () =>
    latest.run((signal) => api.get("/api/queue/users", { signal }), {
      done: ({ items, total, sampled, fairness: kind }) => {
        setText(fairness, `${FAIRNESS[kind] ?? ""} ${counted(total, sampled)}`);
        found.hidden = false;
        wait.remove();
        const most = Math.max(1, ...items.map((/** @type {any} */ { waiting, active }) => waiting + active));
        bars.show(items.map((/** @type {any} */ item) => ({ ...item, most })));
        note.hidden = items.length > 0;
        fill(note, items.length ? null : noUsers());
      },
      failed: (error) => {
        wait.remove();
        note.hidden = false;
        fill(note, errorState(error, load));
      },
    });
  const stop = every(EVERY_MS, load);
  const { field, form } = lookUpForm((sub) => navigate(`/console/users/${encodeURIComponent(sub)}`));
  const title = h("h2", { id: "fill-title" }, "Users with the most jobs");
  const card = h("section", { class: "card stack", "aria-labelledby": "fill-title" }, title, wait, found, note);
  const removeKeys = addKeys([{ keys: "/", does: "Look up a user", run: () => field.focus() }]);
  return {
    element: h("div", { class: "view" }, heading("Users"), form, card),
    title: "Users",
    dispose: () => (stop(), removeKeys(), latest.dispose()),
  };
}

function noUsers() {
  return emptyState("No unfinished jobs", "Users appear here while they have jobs that wait or run.");
}

/** @param {(sub: string) => void} open */
function lookUpForm(open) {
  const field = h("input", {
    type: "search",
    name: "sub",
    required: true,
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    maxlength: "128",
    enterkeyhint: "go",
  });
  const onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (field.value.trim()) open(field.value.trim());
  };
  const form = h(
    "form",
    { class: "look-up", role: "search", "aria-label": "Look up a user", onsubmit },
    h("label", {}, "Id of a user", field),
    h("button", {}, "Look up"),
  );
  return { field, form };
}

/** @param {number} total @param {number} sampled */
function counted(total, sampled) {
  if (total == null) return "";
  return sampled < total
    ? `Counted over the oldest ${number(sampled)} of ${number(total)} unfinished jobs.`
    : `${number(total)} unfinished ${total === 1 ? "job" : "jobs"}.`;
}

/** @param {any} item */
function userBar({ userId, waiting, active, share, most }) {
  const bar = h(
    "span",
    { class: "bar-track", "aria-hidden": "true" },
    h("span", { class: "bar-active" }),
    h("span", { class: "bar-waiting" }),
  );
  bar.children[0].style.width = `${(100 * active) / most}%`;
  bar.children[1].style.width = `${(100 * waiting) / most}%`;
  return h(
    "li",
    {},
    h("a", { class: "bar-name", href: `/console/users/${encodeURIComponent(userId)}` }, userId),
    bar,
    h(
      "span",
      { class: "bar-numbers number small" },
      `${number(waiting)} waiting, ${number(active)} running`,
      h("span", { class: "soft" }, share == null ? "" : ` · ${Math.round(100 * share)} %`),
    ),
  );
}
