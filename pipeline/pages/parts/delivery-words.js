/** Texts for the deliveries of durable notifiers, and the button that sends one again. */

import { h } from "../dom.js";
import { acting, toast } from "./toast.js";

const LOOKS = /** @type {Record<string, [string, string]>} */ ({
  waiting: ["On its way", "busy"],
  delivered: ["Delivered", "good"],
  failed: ["Failed", "bad"],
});

/** @param {any} delivery */
export function deliveryBadge({ state }) {
  const [word, look] = LOOKS[state] ?? [state, ""];
  return h("span", { class: `badge ${look}` }, word);
}

/** The answer of the receiver, or why there is none. @param {any} delivery */
export function responseWords({ response, reason, state, attempts }) {
  if (state === "waiting" && !attempts) return "Waits for its first attempt";
  return reason || response || (state === "delivered" ? "Accepted" : "");
}

/**
 * @param {import("../api.js").Api} api
 * @param {any} delivery
 * @param {() => unknown} then
 * @returns {HTMLElement | null} none for one that is on its way
 */
export function sendAgainButton(api, { deliveryId, notifier, state }, then) {
  if (state === "waiting") return null;
  const send = (/** @type {any} */ { currentTarget }) =>
    acting(currentTarget, async () => {
      await api.post(`/api/queue/deliveries/${encodeURIComponent(deliveryId)}/retry`);
      toast(`The event is on its way to ${notifier} again.`, { kind: "good" });
      await then();
    });
  return h("button", { type: "button", class: "compact", onclick: send }, "Send again");
}
