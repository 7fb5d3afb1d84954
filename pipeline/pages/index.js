/** The page /: a signed-in user uploads photos and follows them. */

import "./client/photo-queue.js";
import { backoffMs, sleep } from "./client/delays.js";
import { readEnvelope } from "./client/http.js";
import { dropped } from "./client/photos/drop-area.js";
import { counted } from "./client/photos/words.js";
import { fill, h } from "./client/photos/elements.js";
import { SessionKeeper } from "./session.js";
import { signInCard } from "./sign-in.js";

const ENDED = "Your sign-in has expired. Photos that were not sent yet are kept.";

const session = new SessionKeeper("user");
const [main, person] = ["main", "person"].map((id) => /** @type {HTMLElement} */ (document.getElementById(id)));
/** @type {any} <photo-queue> */ let queue = null;
let userId = "";
let problem = "";
let renders = 0;

async function show() {
  const { current } = session;
  if (current?.userId === userId && queue) return;
  if (userId && !current) problem ||= "You are signed out.";
  userId = current?.userId ?? "";
  queue = null;
  renders += 1;
  if (current) return showQueue();
  // At once, also while the service is down: the photos of the former user must leave the screen.
  fill(person);
  fill(main);
  await showSignIn(renders);
}

/** Show the sign-in once the service has answered, unless the page has changed meanwhile. @param {number} render */
async function showSignIn(render) {
  for (let failures = 0; ; failures++) {
    const about = await fetch("/api/about")
      .then(readEnvelope)
      .catch(() => null);
    if (render !== renders) return;
    if (about) return fill(main, signInCard(about.signIn, session, { problem }));
    fill(
      main,
      h("p", { class: "empty", role: "status" }, "The service cannot be reached. You can sign in when it answers."),
    );
    await sleep(backoffMs(failures));
  }
}

function showQueue() {
  problem = "";
  queue = h("photo-queue", {});
  queue.token = session.token;
  queue.addEventListener("photo-unauthorized", () => {
    problem = ENDED;
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
addEventListener("drop", async (event) => {
  const isTaken = event.defaultPrevented;
  event.preventDefault();
  if (!isTaken && event.dataTransfer) queue?.add(await dropped(event.dataTransfer));
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
      h("p", {}, "If you sign out now, these photos are lost."),
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

session.addEventListener("ended", () => (problem = ENDED));
session.addEventListener("change", show);
// A link that is pasted into the address bar of the open page does not load it again.
addEventListener("hashchange", enter);
await enter();
