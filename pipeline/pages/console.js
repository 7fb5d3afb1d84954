/** The page /console: operators see what the service does, and act on it. */

import { fill, h } from "./dom.js";
import { SessionKeeper } from "./session.js";
import { signInCard } from "./sign-in.js";

const session = new SessionKeeper("operator");
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const about = (await (await fetch("/api/about")).json()).data;
let problem = "";

function show() {
  if (!session.current) return fill(main, signInCard(about.signIn, session, { forOperators: true, problem }));
  fill(main, h("h1", {}, "Console"));
}

session.addEventListener("change", show);
await session.begin().catch((error) => (problem = error.message));
show();
