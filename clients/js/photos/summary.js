/** The line above the list: the number of photos in each state, and the connection. */

import { h } from "./elements.js";
import { counted } from "./words.js";

const CONNECTIONS = { connecting: "Connecting", connected: "Live", lost: "Reconnecting", offline: "Offline" };
const TRANSPORTS = {
  socket: "Live: results come at once",
  sse: "Live, over a stream",
  poll: "Live, by regular requests",
};

export class Summary {
  #counts = h("p", { class: "counts" });
  #word = h("span");
  #status = h("p", { class: "status", "data-is": "connecting" }, h("i"), this.#word);
  element = h("header", { class: "summary" }, h("h2", {}, "Your photos"), this.#counts, this.#status);

  /** @param {{connection: keyof typeof CONNECTIONS, transport: keyof typeof TRANSPORTS | null, photos: import("./photos.js").Photo[], hasMore?: boolean}} now */
  show({ connection, transport, photos, hasMore = false }) {
    this.#status.dataset.is = connection;
    this.#word.textContent = CONNECTIONS[connection];
    this.#status.title = connection === "connected" && transport ? TRANSPORTS[transport] : "";
    if (connection === "connected" && transport && transport !== "socket")
      this.#word.textContent = transport === "sse" ? "Live (stream)" : "Live (polling)";
    this.#counts.textContent = counts(photos, hasMore);
  }
}

/** @param {import("./photos.js").Photo[]} photos @param {boolean} hasMore */
function counts(photos, hasMore) {
  const found = { unsent: 0, refused: 0, work: 0, failed: 0 };
  for (const { unsent, asset } of photos) {
    if (unsent) found[unsent.step === "refused" ? "refused" : "unsent"] += 1;
    else if (asset?.status === "processing") found.work += 1;
    else if (asset?.status === "failed") found.failed += 1;
  }
  const parts = [
    hasMore ? `${photos.length.toLocaleString()} and more` : counted(photos.length, "photo"),
    found.unsent && `${found.unsent} to send`,
    found.refused && `${found.refused} not sent`,
    found.work && `${found.work} in progress`,
    found.failed && `${found.failed} failed`,
  ];
  return parts.filter(Boolean).join(" · ");
}
