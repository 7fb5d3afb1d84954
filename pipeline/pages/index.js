/** The page /: whoever has signed in drops photos and sees what becomes of each. */

import { fill, h } from "./dom.js";
import { SessionKeeper } from "./session.js";
import { signInCard } from "./sign-in.js";

const session = new SessionKeeper("user");
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const about = (await (await fetch("/api/about")).json()).data;
let problem = "";

function show() {
  if (!session.current) return fill(main, signInCard(about.signIn, session, { problem }));
  fill(main, h("h1", {}, "Photos"));
}

session.addEventListener("change", show);
await session.begin().catch((error) => (problem = error.message));
show();
