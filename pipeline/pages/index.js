/** The page /: whoever has signed in drops photos and sees what becomes of each. */

import "./client/photo-queue.js";
import { counted } from "./client/photos/words.js";
import { fill, h } from "./client/photos/elements.js";
import { SessionKeeper } from "./session.js";

const session = new SessionKeeper("user");
const [main, person] = ["main", "person"].map((id) => /** @type {HTMLElement} */ (document.getElementById(id)));
/** @type {any} <photo-queue> */ let queue = null;
let userId = "";
let problem = "";

async function show() {
  const { current } = session;
  if (current?.userId === userId && queue) return;
  userId = current?.userId ?? "";
  queue = null;
  if (current) return showQueue();
  fill(person);
  const [{ data }, { signInCard }] = await Promise.all([
    fetch("/api/about").then((reply) => reply.json()),
    import("./sign-in.js"),
  ]);
  if (!session.current) fill(main, signInCard(data.signIn, session, { problem }));
  problem = "";
}

function showQueue() {
  queue = h("photo-queue", {});
  queue.token = session.token;
  queue.addEventListener("photo-unauthorized", () => {
    problem = "The sign-in has ended. What was not sent yet is kept for you.";
    session.signOut();
  });
  fill(
    person,
    h("span", { title: "You are signed in with this name" }, userId),
    h("button", { type: "button", class: "quiet", onclick: signOut }, "Sign out"),
  );
  fill(main, queue);
}

// A photo dropped beside the component must not replace the page.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  if (!event.defaultPrevented) queue?.add(event.dataTransfer?.files ?? []);
  event.preventDefault();
});

async function signOut() {
  if (queue.unsent && !(await isSure(queue.unsent))) return;
  await queue.clear();
  session.signOut();
}

/** Whether photos may be lost. @param {number} unsent @returns {Promise<boolean>} */
function isSure(unsent) {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "sure" },
    h(
      "form",
      { method: "dialog", class: "stack" },
      h("h2", { id: "sure" }, `${counted(unsent, "photo is", "photos are")} not sent yet`),
      h("p", {}, "Whoever signs out here leaves nothing behind: what is not sent yet is lost."),
      h(
        "div",
        { class: "row" },
        h("button", { value: "", autofocus: true, class: "primary" }, "Stay signed in"),
        h("button", { value: "yes", class: "danger" }, "Sign out"),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => (dialog.remove(), resolve(dialog.returnValue === "yes"))),
  );
}

async function enter() {
  await session.begin().catch((error) => (problem = error.message));
  await show();
}

session.addEventListener("change", show);
// A link that is pasted into the address of the open page loads no page.
addEventListener("hashchange", enter);
await enter();
