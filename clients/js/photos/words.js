/**
 * The words for a photo's state on screen: short, friendly, plain.
 *
 * @typedef {import("./photos.js").Photo} Photo
 * @typedef {{kind: "" | "busy" | "good" | "warn" | "bad", badge: string, text: string, share?: number | null}} StateText
 *   share: 0 to 1 of a bar; null for work of unknown length; undefined without a bar
 */

const FIELDS = /** @type {const} */ (["brand", "model", "colorway"]);
export { FIELDS };

/** @param {Photo} photo @returns {StateText} */
export function stateOf(photo) {
  if (photo.unsent) return unsentState(photo.unsent);
  const { status, aiMetadata } = /** @type {any} */ (photo.asset);
  if (status === "processing" || status === "draft") return workState(photo.live ?? {});
  if (status === "failed") {
    const error = aiMetadata?.error || "Processing failed";
    if (error === "Cancelled") return { kind: "", badge: "Cancelled", text: "It was stopped. You can run it again." };
    return { kind: "bad", badge: "Failed", text: sentence(error) };
  }
  const missing = ["brand", "model"].filter((field) => !aiMetadata?.[field]?.value);
  if (missing.length)
    return {
      kind: "warn",
      badge: "Partly seen",
      text: `The AI could not see the ${missing.join(" and the ")}. You can fill it in.`,
    };
  return { kind: "good", badge: "Done", text: "" };
}

/** @param {any} unsent @returns {StateText} */
function unsentState({ step, share = 0, reason, nextAt, isOffline, isLimit }) {
  if (step === "refused") return { kind: "bad", badge: "Not sent", text: sentence(reason) };
  if (step === "preparing")
    return { kind: "busy", badge: "Preparing", text: "It is made smaller before it is sent.", share: null };
  if (step === "sending" && share < 1)
    return { kind: "busy", badge: `Sending ${Math.floor(share * 100)} %`, text: "It is being sent.", share };
  if (step === "sending")
    return { kind: "busy", badge: "Sending", text: "All sent. Waiting for the service to confirm it.", share: null };
  if (isOffline)
    return { kind: "warn", badge: "Waiting", text: "No network. It will be sent when you are online again." };
  if (step === "retrying" && isLimit)
    return {
      kind: "",
      badge: "Waiting",
      text: `${sentence(reason)} It is sent automatically at ${clock(nextAt)} or soon after.`,
    };
  if (step === "retrying")
    return { kind: "warn", badge: "Sending again", text: `${sentence(reason)} Next try at ${clock(nextAt)}.` };
  return { kind: "", badge: "Waiting", text: "Waiting to be sent." };
}

/** @param {any} live asset.progress @returns {StateText} */
function workState({ state, position, etaSeconds, attempt, reason, nextAt, share }) {
  if (state === "held") {
    const next = nextAt ? ` Next try at ${clock(Date.parse(nextAt))}.` : " It continues automatically.";
    return { kind: "warn", badge: "On hold", text: sentence(reason ?? "The photo is on hold") + next };
  }
  if (state === "retrying") {
    const next = nextAt ? `at ${clock(Date.parse(nextAt))}` : "soon";
    const failure = reason ? `The last attempt failed: ${sentence(reason)}` : "The last attempt failed.";
    return { kind: "warn", badge: `Attempt ${(attempt ?? 1) + 1}`, text: `It starts ${next}. ${failure}` };
  }
  if (state === "running") {
    const badge = attempt > 1 ? `Attempt ${attempt}` : "Looking";
    const text = share == null ? "The AI is looking at it." : `The AI is looking at it: ${Math.floor(share * 100)} %.`;
    return { kind: "busy", badge, text, share: share ?? null };
  }
  const about = etaSeconds == null ? "" : `, ${duration(etaSeconds)}`;
  if (position == null) return { kind: "", badge: "In line", text: `Sent. It is in line${about}.` };
  return {
    kind: "",
    badge: `Place ${position}`,
    text: position === 1 ? `Next in line${about}.` : `Place ${position} in line${about}.`,
  };
}

/** @param {number} confidence 0 to 1 @param {boolean} isCorrected */
export function confidenceWords(confidence, isCorrected) {
  if (isCorrected) return "set by you";
  if (confidence >= 0.9) return "sure";
  if (confidence >= 0.7) return "fairly sure";
  if (confidence >= 0.4) return "not sure";
  return "a guess";
}

/** The title of a photo. @param {Photo} photo */
export function nameOf({ name, asset, unsent }) {
  const { brand, model } = asset?.aiMetadata ?? {};
  const found = [brand?.value, model?.value].filter(Boolean).join(" ");
  return found || name || titled(`${unsent?.category ?? asset?.category ?? ""} photo`);
}

// Created once: each costs more than the rest of a row.
const TIME = new Intl.DateTimeFormat([], { timeStyle: "short" });
const DAY = new Intl.DateTimeFormat([], { dateStyle: "medium" });

/** The category and when the photo was sent. @param {any} asset */
export function sortOf({ category, createdAt }) {
  const at = new Date(createdAt);
  const isToday = at.toDateString() === new Date().toDateString();
  return `${titled(category)} · ${(isToday ? TIME : DAY).format(at)}`;
}

/** @param {string} category */
export function titled(category) {
  const text = category.replaceAll(/[_-]+/g, " ").trim();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** The message about files that are not photos. @param {{name: string, isReadable: boolean}[]} files */
export function refusal(files) {
  const [{ name, isReadable }] = files;
  const kinds = "Photos are JPEG, PNG, WebP, GIF, AVIF or HEIC.";
  if (files.length === 1) return isReadable ? `${name} is not a photo. ${kinds}` : `${name} cannot be read.`;
  const names = files.slice(0, 3).map(({ name }) => name);
  return `${files.length} files are not photos: ${names.join(", ")}${files.length > 3 ? " …" : ""}. ${kinds}`;
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toLocaleString([], { maximumFractionDigits: 1 })} MB`;
}

/** @param {number} count @param {string} one @param {string} [many] */
export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString()} ${count === 1 ? one : many}`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${Math.round(seconds / 3600)} h`;
}

/** @param {number} at */
function clock(at) {
  return new Date(at).toLocaleTimeString([], { timeStyle: "medium" });
}

/** @param {string} text */
function sentence(text) {
  const trimmed = String(text).trim();
  return /[.!?…]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}
