/**
 * The three transports of events: a WebSocket, server-sent events, long polling. A function opens each: it calls its
 * line with what comes and with the end, and returns how to close it.
 *
 * @typedef {object} Loss why it ended
 * @property {number} code the close code; 1006 when none was received
 * @property {number} [retryInMs] the retry delay that the service names
 * @property {string} [message] of the service, for people
 * @property {boolean} [isMute] nothing was received for too long
 *
 * @typedef {object} Line
 * @property {(frame: any) => void} frame
 * @property {() => void} activity bytes were received
 * @property {(timestamp: string) => void} reached all events up to this time have come
 * @property {(loss: Loss) => void} lost
 *
 * @typedef {object} Transport
 * @property {() => void} close the line is not called after this
 * @property {(frame: object) => void} [send]
 * @property {boolean} [isBlind] pings of the service are invisible
 */

import { BROKEN } from "./close-codes.js";
import { sleep } from "./delays.js";
import { PipelineError, readEnvelope } from "./http.js";
import { claimsOf } from "./tokens.js";

const MAX_MESSAGE_CHARACTERS = 1024 * 1024;
const WAIT_SECONDS = 25;
const SHORT_MS = 1_000;
/** @type {Record<number, number>} HTTP status -> the close code with this meaning on a WebSocket */
const HTTP_CODES = { 400: 4400, 401: 4403, 429: 4429, 503: 1013 };

/**
 * @param {{url: string, token: string, since?: string, events?: string[], Socket: any}} given @param {Line} line
 * @returns {Transport}
 */
export function openSocket({ url, token, since, events, Socket }, line) {
  if (!Socket) throw new TypeError("WebSocket is missing: use Node 22 or newer, or pass the option WebSocket");
  const socket = new Socket(`${url.replace(/^http/, "ws")}/ws`, ["pipeline.v1"]);
  // Not in the handshake: proxies log its headers.
  socket.onopen = () => socket.send(JSON.stringify({ auth: { token }, since, events }));
  socket.onmessage = (/** @type {{data: unknown}} */ { data }) => line.frame(parse(data));
  socket.onclose = (/** @type {{code: number}} */ { code }) => line.lost({ code });
  // Node 22 reports an attempt that failed as an error only. Where a close event follows, it comes first.
  socket.onerror = () => setTimeout(() => line.lost({ code: BROKEN }));
  return {
    isBlind: true,
    send: (frame) => socket.send(JSON.stringify(frame)),
    close() {
      // A dead connection may take minutes to close; its events do not count any more.
      socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
      socket.close();
    },
  };
}

/**
 * Not EventSource, which cannot send a header: the token must not be in the URL.
 * @param {{url: string, token: string, since?: string, events?: string[], send: import("./http.js").Send}} given
 * @param {Line} line @returns {Transport}
 */
export function openStream({ url, token, since, events, send }, line) {
  const query = new URLSearchParams();
  if (since !== undefined) query.set("since", since);
  if (events) query.set("events", events.join(","));
  return runUntilClosed(line, async (signal) => {
    const headers = { Accept: "text/event-stream", Authorization: `Bearer ${token}` };
    const response = await send(`${url}/api/events?${query}`, { method: "GET", headers, signal });
    const isStream = response.ok && response.headers.get("Content-Type")?.startsWith("text/event-stream");
    if (!isStream || !response.body) {
      await readEnvelope(response);
      throw new TypeError("No event stream");
    }
    const decoder = new TextDecoder();
    const take = eventReader(line);
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done || signal.aborted) return;
      line.activity();
      take(decoder.decode(value, { stream: true }));
    }
  });
}

/**
 * Return a function that reads the text of an event stream, in any pieces. Unknown fields are ignored.
 * @param {Line} line
 */
function eventReader(line) {
  let rest = "";
  /** @type {string[]} */ let data = [];
  let id = "";
  return (/** @type {string} */ text) => {
    // A "\r" at the end may be the first half of "\r\n".
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    for (const each of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(each) ?? [];
      if (name === "data") data.push(value);
      else if (name === "id") id = value;
      if (each !== "") continue;
      if (data.length) line.frame(parse(data.join("\n")));
      if (id) line.reached(id);
      [data, id] = [[], ""];
    }
    if (rest.length + data.reduce((sum, { length }) => sum + length, 0) > MAX_MESSAGE_CHARACTERS) {
      throw new TypeError("A message too large");
    }
  };
}

/**
 * The list answers when something has finished since shortly before the cursor: an event may arrive after one with a
 * later timestamp.
 * @param {object} given
 * @param {string} given.token
 * @param {import("./inbox.js").List} given.list
 * @param {(signal: AbortSignal, wait?: number) => Promise<number>} given.catchUp reads missed events, within so many
 *   seconds; returns the number of new ones
 * @param {Line} line @returns {Transport}
 */
export function openPoll({ token, list, catchUp }, line) {
  return runUntilClosed(line, async (signal) => {
    const { serverTime } = await list({ limit: 1 }, { signal, tries: 1 });
    if (!serverTime) throw new TypeError("The list does not have the service's time");
    line.frame({ event: "connected", room: `user:${claimsOf(token).sub}`, serverTime });
    for (;;) {
      const asked = performance.now();
      const found = await catchUp(signal, WAIT_SECONDS);
      // An answer may come at once without news: from a service that shuts down, or about an event that has come before.
      const isQuick = performance.now() - asked < SHORT_MS;
      if (isQuick && !found) await sleep(SHORT_MS * (1 + 2 * Math.random()), signal);
    }
  });
}

/** @param {Line} line @param {(signal: AbortSignal) => Promise<void>} run @returns {Transport} */
function runUntilClosed(line, run) {
  const closing = new AbortController();
  const { signal } = closing;
  run(signal).then(
    () => signal.aborted || line.lost({ code: BROKEN }),
    (error) => signal.aborted || line.lost(lossOf(error)),
  );
  return { close: () => closing.abort() };
}

/** @param {unknown} error @returns {Loss} */
function lossOf(error) {
  // An answer without our envelope comes from a proxy.
  if (!(error instanceof PipelineError) || error.code === "HTTP_ERROR") return { code: BROKEN };
  const { message, status, retryAfterMs: retryInMs } = error;
  if (status === 401 && retryInMs !== undefined) return { code: 1013, retryInMs, message }; // not valid yet
  return { code: HTTP_CODES[status] ?? BROKEN, retryInMs, message };
}

/** @param {unknown} data @returns {any} undefined for anything but JSON */
function parse(data) {
  try {
    return JSON.parse(String(data));
  } catch {
    return undefined;
  }
}
