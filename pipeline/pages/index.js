/** The page /: whoever has signed in drops photos and sees what becomes of each. */

import "./client/photo-queue.js";
import { backoffMs, sleep } from "./client/delays.js";
import { counted } from "./client/photos/words.js";
import { fill, h } from "./client/photos/elements.js";
import { SessionKeeper } from "./session.js";
import { signInCard } from "./sign-in.js";

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
  // At once, also where the service cannot be asked how to sign in: nobody's photos stay on the screen.
  fill(person);
  fill(main);
  for (let failures = 0; !session.current; failures++) {
    try {
      const { data } = await (await fetch("/api/about")).json();
      if (!session.current) fill(main, signInCard(data.signIn, session, { problem }));
      problem = "";
      return;
    } catch {
      fill(main, h("p", { class: "empty", role: "status" }, "The service cannot be reached. Signing in waits for it."));
      await sleep(backoffMs(failures));
    }
  }
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

session.addEventListener("change", show);
await session.begin().catch((error) => (problem = error.message));
await show();
