/** Deliveries. */

import { h } from "../dom.js";
import { emptyState, heading } from "../parts/states.js";

/** @param {import("../router.js").Context} context @returns {import("../router.js").View} */
export default function view() {
  return { element: h("div", { class: "view" }, heading("Deliveries"), emptyState("Nothing here yet.")), title: "Deliveries" };
}
