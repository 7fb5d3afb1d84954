/** The page before sign-in: a link to the login, or how to get a link, and a field for a token. */

import { h } from "./dom.js";

/**
 * @param {{kind: "link" | "login" | "token", loginUrl: string | null}} signIn of GET /api/about
 * @param {import("./session.js").SessionKeeper} session
 * @param {{forOperators?: boolean, problem?: string}} [options] problem: why the last attempt failed
 * @returns {HTMLElement}
 */
export function signInCard(signIn, session, { forOperators = false, problem = "" } = {}) {
  const message = h("p", { class: "small", role: "alert" }, problem);
  const field = h("input", {
    type: "password",
    name: "token",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });
  const form = h(
    "form",
    { class: "stack", onsubmit: (/** @type {Event} */ event) => event.preventDefault() || take() },
    h("label", {}, forOperators ? "Token with the role admin or operator-read" : "Token", field),
    h("div", { class: "row" }, h("button", { class: signIn.kind === "login" ? "" : "primary" }, "Sign in")),
    message,
  );
  async function take() {
    message.textContent = "";
    try {
      await session.signIn(field.value);
    } catch (/** @type {any} */ error) {
      message.textContent = error.status === 401 ? "The service does not accept this token." : error.message;
      field.focus();
    }
  }
  return h(
    "section",
    { class: "card stack sign-in", "aria-label": "Sign in" },
    h("h1", {}, "Sign in"),
    ...instructions(signIn, forOperators),
    form,
  );
}

/** @param {{kind: string, loginUrl: string | null}} signIn @param {boolean} forOperators */
function instructions({ kind, loginUrl }, forOperators) {
  if (kind === "login" && loginUrl) {
    const login = new URL(loginUrl);
    login.searchParams.set("return_to", location.origin + location.pathname + location.search);
    return [
      h("p", {}, h("a", { class: "button primary", href: login.href }, "Go to the login")),
      h("p", { class: "soft small" }, "Or paste a token."),
    ];
  }
  if (kind === "link") {
    const command = `.venv/bin/python run.py link${forOperators ? " --console" : ""}`;
    return [
      h(
        "p",
        { class: "soft" },
        "Open the link that was printed when the service started. It is valid for ten minutes. To print a new one, run ",
        h("code", {}, command),
        " in the folder of the service.",
      ),
      h("p", { class: "soft small" }, "Or paste a token."),
    ];
  }
  return [h("p", { class: "soft" }, "Paste a token of your application.")];
}
