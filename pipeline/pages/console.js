/** The page /console, for operators. */

import { Api } from "./api.js";
import { readEnvelope } from "./client/http.js";
import { fill, h } from "./dom.js";
import { Live } from "./live.js";
import { addKeys, showKeys } from "./parts/keyboard.js";
import { emptyState, errorState, heading } from "./parts/states.js";
import { Router } from "./router.js";
import { SessionKeeper } from "./session.js";
import { VIEWS, Shell } from "./shell.js";
import { signInCard } from "./sign-in.js";
import audit from "./views/audit.js";
import deliveries from "./views/deliveries.js";
import failures from "./views/failures.js";
import job from "./views/job.js";
import jobs from "./views/jobs.js";
import overview from "./views/overview.js";
import plugins from "./views/plugins.js";
import processes from "./views/processes.js";
import user from "./views/user.js";
import users from "./views/users.js";

const ROLES = ["admin", "operator-read"];
/** @type {import("./router.js").Route[]} */
const ROUTES = [
  { path: "/console", view: overview },
  { path: "/console/jobs", view: jobs },
  { path: "/console/jobs/:id", view: job },
  { path: "/console/failures", view: failures },
  { path: "/console/deliveries", view: deliveries },
  { path: "/console/processes", view: processes },
  { path: "/console/plugins", view: plugins },
  { path: "/console/users", view: users },
  { path: "/console/users/:sub", view: user },
  { path: "/console/audit", view: audit },
  { path: "/console/.*", view: unknown },
];

const session = new SessionKeeper("operator");
const header = /** @type {HTMLElement} */ (document.getElementById("header"));
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
let about = /** @type {any} */ (null);
let problem = "";
/** The user of the page: a fresh token of the same user changes nothing. */
let shownFor = "";
let close = () => {};

function show() {
  const { userId, role } = session.current ?? {};
  const isOperator = ROLES.includes(role ?? "");
  const user = isOperator ? `${role} ${userId}` : "";
  if (user && user === shownFor) return;
  if (shownFor && !session.current) problem = "You are signed out.";
  close();
  shownFor = user;
  if (session.current && !isOperator)
    problem = "This token gives no access to the console: it needs the role admin or operator-read.";
  close = isOperator ? open() : askToSignIn();
}

/** @returns {() => void} removes the page */
function open() {
  problem = "";
  document.body.classList.add("has-shell");
  const api = new Api(session);
  const live = new Live(api, session);
  const shell = new Shell(header, live, session, about);
  const context = { api, live, session, about, mayChange: session.current?.role === "admin" };
  const router = new Router(ROUTES, main, context, (path) => shell.moved(path));
  const removeKeys = addKeys([
    { keys: "?", does: "Show these keys", run: showKeys },
    ...VIEWS.map(({ key, name, path }) => ({
      keys: `g ${key}`,
      does: `Go to ${name}`,
      run: () => router.navigate(path),
    })),
  ]);
  live.start();
  router.start();
  return () => {
    removeKeys();
    router.stop();
    live.stop();
    shell.dispose();
    document.body.classList.remove("has-shell");
  };
}

function askToSignIn() {
  document.title = "Sign in · Console";
  fill(main, signInCard(about.signIn, session, { forOperators: true, problem }));
  return () => fill(main);
}

function unknown() {
  const element = h(
    "div",
    { class: "view" },
    heading("Not found"),
    emptyState("There is no such page.", null, h("a", { class: "button", href: "/console" }, "To the overview")),
  );
  return { element, title: "Not found" };
}

async function begin() {
  try {
    about = await fetch("/api/about").then(readEnvelope);
  } catch {
    return fill(main, errorState({ status: 0, message: "The service cannot be reached." }, begin));
  }
  session.addEventListener("change", show);
  // A link that is pasted into the address bar of the open page does not load it again.
  addEventListener("hashchange", enter);
  await enter();
}

async function enter() {
  await session.begin().catch((error) => (problem = error.message));
  show();
}

await begin();
