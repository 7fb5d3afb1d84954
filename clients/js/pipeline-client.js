/**
 * A client of the AI queue pipeline: uploads photos and hears of every result, whatever the network does meanwhile.
 * For browsers and Node 20.3 or newer. Needs nothing but, where there is no WebSocket (Node before 22), the file beside
 * it. The protocol is in contracts/rooms.asyncapi.json and contracts/analyze-queue.openapi.json.
 *
 * @typedef {{value: string, confidence: number}} Attribute confidence: 0 to 1
 * @typedef {object} AssetProcessed the work on a photo has ended
 * @property {"asset_processed"} event
 * @property {string} assetId
 * @property {"active" | "partial" | "failed"} status partial: brand or model is missing, its value is ""
 * @property {{brand: Attribute, model: Attribute, colorway?: Attribute}} [aiMetadata] unless failed
 * @property {string} [processedImageUrl]
 * @property {string} [error] why it failed, for people
 * @property {string} timestamp the asset's finishedAt
 *
 * @typedef {object} Events what `on` listens to
 * @property {AssetProcessed} asset_processed
 * @property {{room: string, serverTime: string}} connected
 * @property {{code: number, willReconnect: boolean, retryInMs: number | null}} disconnected code 1006: the connection
 *   broke or never came about; willReconnect: false after close(), and when the server refused for good
 * @property {Error} error the client gave up, or a function of the app failed
 *
 * @typedef {{assetId: string, jobId: string, status: "processing", message: string}} Receipt
 * @typedef {Record<string, any>} Asset schema Asset of contracts/analyze-queue.openapi.json
 * @typedef {{method: string, headers: Record<string, string>, body?: Blob, signal: AbortSignal}} Sending
 * @typedef {(url: string, sending: Sending) => Promise<Response>} Send
 * @typedef {(sentBytes: number, totalBytes: number) => void} OnProgress
 */

const CONNECT_MS = 10_000;
const BACKOFF_MS = { first: 500, longest: 30_000 };
const OVERLAP_MS = 30_000; // an event may be told so much later than one with a later timestamp
const REMEMBERED = 5_000; // events, to drop repeats
const RENEW_MS = 60_000;
const MAX_TIMER_MS = 2 ** 31 - 1; // setTimeout fires at once for more
const TRIES = 5;
const LONGEST_RETRY_AFTER_MS = 60_000;
const TIMEOUT_MS = { GET: 30_000, POST: 300_000 }; // 300 s: as long as the server lets an upload take
const CHUNK_BYTES = 64 * 1024;
const TOKEN_CODES = [4401, 4403, 4419];
const VIOLATION_CODES = [1002, 1007, 1009];

/** What the service refused, in the words of its envelope, or what kept us from reaching it. */
export class PipelineError extends Error {
  /**
   * @param {string} message for people
   * @param {string} code the envelope's, or NETWORK_ERROR, HTTP_ERROR (no envelope), TOKEN_UNAVAILABLE, REFUSED, CLOSED
   * @param {number} status of HTTP; the close code of the WebSocket; 0 where no answer came
   * @param {{details?: {field: string, message: string}[], retryAfterMs?: number, cause?: unknown}} [more]
   */
  constructor(message, code, status, { details = [], retryAfterMs, cause } = {}) {
    super(message, { cause });
    this.name = "PipelineError";
    this.code = code;
    this.status = status;
    this.details = details;
    this.retryAfterMs = retryAfterMs;
  }
}

export class PipelineClient {
  #url;
  #givenToken;
  #givenWebSocket;
  /** @type {Send} */ #send;
  /** @type {string | undefined} the newest */ #token;
  #clockAheadMs = 0; // the server's clock; ours may be wrong by hours
  /** @type {string | undefined} */ #since;
  /** @type {Set<string>} */ #seen = new Set();
  /** @type {Map<string, Set<(detail: any) => unknown>>} */ #listeners = new Map();

  // From connect() until close() or the end:
  /** @type {Promise<string> | null} */ #room = null;
  /** @type {{resolve(room: string): void, reject(error: unknown): void} | undefined} */ #waiting;
  #failures = 0; // attempts in a row
  #isTokenRetried = false;

  // Of one attempt and the connection it becomes; #end() lets go of it all:
  #alive = new AbortController();
  /** @type {WebSocket | import("./node-websocket.js").WebSocket | null} */ #socket = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} to connect, to be connected or to renew */ #timer;
  /** @type {number | undefined} */ #goodbyeMs;
  /** @type {string | undefined} */ #refusal;
  #resyncs = 0; // asked for and not yet complete
  /** @type {string | undefined} the newest live timestamp while a resync is read */ #ahead;

  /**
   * One client is for one user.
   * @param {object} options
   * @param {string} options.url of the service, e.g. "https://photos.example.com"
   * @param {string | (() => string | Promise<string>)} options.token a function is asked for each connection and when
   *   the token is about to expire, and returns a fresh one; with a string all ends when it expires
   * @param {string} [options.since] hear also of what finished after this: `client.since` of an earlier life
   * @param {new (url: string, protocols: string[]) => WebSocket} [options.WebSocket]
   * @param {typeof globalThis.fetch} [options.fetch]
   */
  constructor({ url, token, since, WebSocket, fetch = globalThis.fetch }) {
    this.#url = new URL(url).href.replace(/\/+$/, "");
    this.#givenToken = token;
    this.#since = since;
    this.#givenWebSocket = WebSocket;
    this.#send = (address, sending) => fetch(address, sending); // never as a method of ours: browsers forbid it
  }

  /** All events up to this time have been handed on; keep it to go on from here in another life of the app. */
  get since() {
    return this.#since;
  }

  /**
   * Call the listener with each event of that name; return a function that ends it.
   * @template {keyof Events} Name
   * @param {Name} name
   * @param {(detail: Events[Name]) => unknown} listener
   */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /**
   * Connect, and reconnect whenever the connection breaks, until close(). Resolves with the room at the first
   * `connected`; rejects when the server refuses for good or close() comes before.
   */
  connect() {
    if (this.#room) return this.#room;
    /** @type {Promise<string>} */
    const room = new Promise((resolve, reject) => (this.#waiting = { resolve, reject }));
    room.catch(() => {}); // nobody has to await it: `error` tells as well
    this.#room = room;
    globalThis.addEventListener?.("online", this.#networkIsBack);
    globalThis.document?.addEventListener("visibilitychange", this.#pageIsSeen);
    this.#open();
    return room;
  }

  /** End the connection and all that would bring it back. */
  close() {
    if (this.#room) this.#stop(1000, new PipelineError("The client was closed", "CLOSED", 0));
  }

  // the connection

  async #open() {
    this.#end();
    const { signal } = this.#alive;
    try {
      const token = await this.#freshToken();
      const Socket = this.#givenWebSocket ?? globalThis.WebSocket ?? (await import("./node-websocket.js")).WebSocket;
      if (signal.aborted) return;
      const socket = new Socket(`${this.#url.replace(/^http/, "ws")}/ws`, ["pipeline.v1"]);
      this.#socket = socket;
      this.#setTimer(CONNECT_MS, () => this.#lose(1006));
      // Not in the handshake: its headers end up in the logs of proxies.
      socket.onopen = () => socket.send(JSON.stringify({ auth: { token }, since: this.#since }));
      socket.onmessage = ({ data }) => this.#receive(data, token);
      socket.onclose = ({ code }) => this.#lose(code);
    } catch (error) {
      if (signal.aborted) return;
      // A token may be had later; an address no WebSocket can be made for stays one.
      if (!(error instanceof PipelineError)) return this.#giveUp(1006, error);
      this.#lose(1006);
      this.#emit("error", error);
    }
  }

  /** @param {unknown} data @param {string} token of this connection */
  #receive(data, token) {
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return; // none of ours
    }
    if (frame?.event === "connected") this.#enter(frame, token);
    else if (frame?.event === "asset_processed") this.#handOn(frame, this.#resyncs > 0);
    else if (frame?.event === "resync") this.#resync();
    else if (frame?.event === "goodbye") this.#goodbyeMs = frame.retryInMs;
    else if (frame?.event === "error") this.#refusal = frame.message;
  }

  /** @param {{room: string, serverTime: string}} frame @param {string} token */
  #enter({ room, serverTime }, token) {
    this.#failures = 0;
    this.#since ??= serverTime;
    this.#clockAheadMs = Date.parse(serverTime) - Date.now();
    // The server bears for seconds with a token that has expired, then closes with 4419: that one was not accepted.
    if (this.#lifeMs(token) > 0) this.#isTokenRetried = false;
    this.#planRenewal(token);
    this.#waiting?.resolve(room);
    this.#emit("connected", { room, serverTime });
  }

  /** The connection is gone, or did not come about. @param {number} code */
  #lose(code) {
    const isToken = TOKEN_CODES.includes(code);
    if (isToken && typeof this.#givenToken === "function" && !this.#isTokenRetried) {
      this.#isTokenRetried = true;
      this.#reconnect(code, 0);
    } else if ((code >= 4400 && code < 4500) || VIOLATION_CODES.includes(code)) {
      const message = this.#refusal ?? `The server refused (${code})`;
      this.#giveUp(code, new PipelineError(message, isToken ? "UNAUTHORIZED" : "REFUSED", code));
    } else {
      this.#reconnect(code, this.#goodbyeMs ?? backoffMs(this.#failures++));
    }
  }

  /** @param {number} code @param {number} retryInMs */
  #reconnect(code, retryInMs) {
    this.#end();
    this.#setTimer(retryInMs, () => this.#open());
    this.#emit("disconnected", { code, willReconnect: true, retryInMs });
  }

  /** @param {number} code @param {unknown} error */
  #giveUp(code, error) {
    this.#stop(code, error);
    this.#emit("error", error);
  }

  /** @param {number} code @param {unknown} error for who still waits for the first connection */
  #stop(code, error) {
    this.#end();
    globalThis.removeEventListener?.("online", this.#networkIsBack);
    globalThis.document?.removeEventListener("visibilitychange", this.#pageIsSeen);
    this.#waiting?.reject(error);
    this.#room = null;
    this.#failures = 0;
    this.#isTokenRetried = false;
    this.#emit("disconnected", { code, willReconnect: false, retryInMs: null });
  }

  #end() {
    clearTimeout(this.#timer);
    this.#alive.abort();
    this.#alive = new AbortController();
    if (this.#socket) {
      // On a dead line it may take minutes to close; nothing it says counts any more.
      this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
      this.#socket.close();
    }
    this.#socket = null;
    this.#goodbyeMs = this.#refusal = this.#ahead = undefined;
    this.#resyncs = 0;
  }

  // A connection from before the outage may look open for minutes, and a page has no ping to try it.
  #networkIsBack = () => this.#reconnect(1006, 0);

  // Browsers slow down the timers of pages nobody sees.
  #pageIsSeen = () => {
    if (document.visibilityState === "visible" && !this.#socket) this.#open();
  };

  /** @param {number} ms @param {() => void} then */
  #setTimer(ms, then) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, ms);
  }

  // the token

  async #freshToken() {
    try {
      const token = typeof this.#givenToken === "function" ? await this.#givenToken() : this.#givenToken;
      if (typeof token !== "string") throw new TypeError("it returned no string");
      return (this.#token = token);
    } catch (cause) {
      const message = `The token function failed: ${cause instanceof Error ? cause.message : cause}`;
      throw new PipelineError(message, "TOKEN_UNAVAILABLE", 0, { cause });
    }
  }

  /** @param {string} token */
  #lifeMs(token) {
    return expiryOf(token) - Date.now() - this.#clockAheadMs;
  }

  /** @param {string} token of the connection */
  #planRenewal(token) {
    clearTimeout(this.#timer);
    const lifeMs = this.#lifeMs(token);
    const waitMs = lifeMs - Math.min(RENEW_MS, lifeMs / 10);
    if (typeof this.#givenToken !== "function" || waitMs < 1000) return; // too late: close code 4419 will renew it
    if (waitMs > MAX_TIMER_MS) this.#setTimer(MAX_TIMER_MS, () => this.#planRenewal(token));
    else this.#setTimer(waitMs, () => this.#renew(token));
  }

  /** @param {string} token the old one */
  async #renew(token) {
    const { signal } = this.#alive;
    try {
      token = await this.#freshToken();
      if (!signal.aborted) this.#socket?.send(JSON.stringify({ auth: { token } }));
    } catch (error) {
      if (!signal.aborted) this.#emit("error", error);
    }
    if (!signal.aborted) this.#planRenewal(token);
  }

  // events

  /** @param {AssetProcessed} event @param {boolean} isAhead of what a resync has still to read */
  #handOn(event, isAhead) {
    if (isAhead) this.#ahead = later(this.#ahead, event.timestamp);
    else this.#since = later(this.#since, event.timestamp);
    const key = `${event.assetId} ${event.timestamp}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    const [oldest] = this.#seen;
    if (this.#seen.size > REMEMBERED) this.#seen.delete(oldest);
    this.#emit("asset_processed", event);
  }

  /** Read what was missed, oldest first; a resync asked for meanwhile begins when this one has ended. */
  async #resync() {
    if (++this.#resyncs > 1) return;
    const { signal } = this.#alive;
    try {
      for (let begun = 0; begun < this.#resyncs; ) {
        begun = this.#resyncs;
        const finishedSince = new Date(Date.parse(this.#since ?? "") - OVERLAP_MS).toISOString();
        let cursor = null;
        do {
          const page = await this.#assets({ finishedSince, limit: 100, cursor }, { signal, tries: Infinity });
          // One that has got a new job since it was listed has no event yet.
          for (const asset of page.items.filter(({ status }) => ["active", "partial", "failed"].includes(status))) {
            if (signal.aborted) return; // a listener has closed the client
            this.#handOn(toEvent(asset), false);
          }
          cursor = page.nextCursor;
        } while (cursor);
      }
    } catch (error) {
      if (!signal.aborted) this.#giveUp(1000, error);
    }
    if (signal.aborted) return;
    this.#resyncs = 0;
    if (this.#ahead) this.#since = later(this.#since, this.#ahead);
    this.#ahead = undefined;
  }

  /** @param {keyof Events} name @param {unknown} detail */
  #emit(name, detail) {
    const listeners = [...(this.#listeners.get(name) ?? [])];
    if (name === "error" && !listeners.length) console.error(detail);
    for (const listener of listeners) this.#callApp(listener, [detail], name === "error" ? console.error : undefined);
  }

  /**
   * Call a function of the app at once; neither a throw nor a rejection gets through.
   * @param {(...parameters: any[]) => unknown} call
   * @param {unknown[]} parameters
   * @param {(error: unknown) => void} [onError]
   */
  #callApp(call, parameters, onError = (error) => this.#emit("error", error)) {
    new Promise((resolve) => resolve(call(...parameters))).catch(onError);
  }

  // over HTTP

  /**
   * Upload a photo. After network errors, 429, 502, 503 and 504 it is sent again with the same Idempotency-Key, so it
   * is accepted once. PipelineError when the service refuses it or stays out of reach.
   * @param {Blob} file
   * @param {object} options
   * @param {"sneaker" | "lego" | "camera" | "other"} options.category
   * @param {string} [options.idempotencyKey] one of your own makes a repeat in another life of the app safe too
   * @param {OnProgress} [options.onProgress] of the whole body; starts anew when it is sent again
   * @param {AbortSignal} [options.signal]
   * @returns {Promise<Receipt>}
   */
  upload(file, { category, idempotencyKey = randomHex(), onProgress, signal }) {
    const headers = { "Idempotency-Key": idempotencyKey };
    const body = multipart(file, category);
    const send = onProgress && this.#sendWithProgress((...step) => this.#callApp(onProgress, step));
    return this.#request("POST", "/api/assets/analyze-queue", { headers, body, signal, send });
  }

  /** @param {string} id @returns {Promise<Asset>} */
  asset(id) {
    return this.#request("GET", `/api/assets/${encodeURIComponent(id)}`);
  }

  /**
   * A page of one's own assets: newest first; with finishedSince oldest first.
   * @param {Record<string, string | number | null | undefined>} [query] status, category, limit, cursor, finishedSince
   */
  assets(query = {}) {
    return this.#assets(query);
  }

  /**
   * @param {Record<string, unknown>} query @param {{signal?: AbortSignal, tries?: number}} [options]
   * @returns {Promise<{items: Asset[], nextCursor: string | null}>}
   */
  #assets(query, options) {
    const text = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) if (value != null) text.set(name, String(value));
    return this.#request("GET", `/api/assets?${text}`, options);
  }

  /**
   * @param {"GET" | "POST"} method
   * @param {string} path
   * @param {{send?: Send, signal?: AbortSignal, tries?: number} & Partial<Sending>} [options]
   */
  async #request(method, path, { headers, body, signal, send = this.#send, tries = TRIES } = {}) {
    let isTokenRetried = typeof this.#givenToken !== "function";
    for (let failures = 0; ; ) {
      try {
        signal?.throwIfAborted();
        const isFresh = this.#token !== undefined && this.#lifeMs(this.#token) > 30_000; // time to get there
        const token = isFresh ? this.#token : await this.#freshToken();
        const timeout = AbortSignal.timeout(TIMEOUT_MS[method]);
        const response = await send(this.#url + path, {
          method,
          headers: { ...headers, Authorization: `Bearer ${token}` },
          body,
          signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
        });
        return await readEnvelope(response);
      } catch (cause) {
        signal?.throwIfAborted();
        const error = cause instanceof PipelineError ? cause : noAnswer(cause);
        if (error.status === 401 && !isTokenRetried) {
          isTokenRetried = true;
          this.#token = undefined;
          continue;
        }
        // A 500 may be this photo's doing; to ask for a list again does no harm.
        const isPassing = error.status === 500 ? method === "GET" : [0, 429, 502, 503, 504].includes(error.status);
        const waitMs = error.retryAfterMs ?? backoffMs(failures);
        const isTooLong = waitMs > LONGEST_RETRY_AFTER_MS && tries < Infinity;
        if (!isPassing || isTooLong || ++failures >= tries) throw error;
        await sleep(Math.min(waitMs, LONGEST_RETRY_AFTER_MS), signal);
      }
    }
  }

  /** @param {OnProgress} onProgress @returns {Send} */
  #sendWithProgress(onProgress) {
    if (globalThis.XMLHttpRequest) return (url, sending) => sendByXhr(url, sending, onProgress);
    return (url, { body = new Blob(), ...sending }) => {
      const headers = { ...sending.headers, "Content-Type": body.type };
      const streamed = { ...sending, headers, body: countedStream(body, onProgress), duplex: "half" };
      return this.#send(url, /** @type {any} */ (streamed));
    };
  }
}

/** As pipeline/assets/events.py does it. @param {Asset} asset a finished one @returns {AssetProcessed} */
function toEvent({ id, status, aiMetadata: { brand, model, colorway, error }, images, finishedAt }) {
  const missing = { value: "", confidence: 0 };
  /** @type {AssetProcessed} */
  const event = { event: "asset_processed", assetId: id, status, timestamp: finishedAt };
  if (status === "failed") return { ...event, error: error || "Processing failed" };
  event.aiMetadata = { brand: brand ?? missing, model: model ?? missing, ...(colorway && { colorway }) };
  if (images.processed) event.processedImageUrl = images.processed.url;
  return event;
}

/** Anything up to the limit, so that clients cut off together do not come back together. @param {number} failures */
function backoffMs(failures) {
  return Math.random() * Math.min(BACKOFF_MS.longest, BACKOFF_MS.first * 2 ** failures);
}

/** @param {string | undefined} a @param {string} b */
function later(a, b) {
  return a === undefined || Date.parse(b) > Date.parse(a) ? b : a;
}

/** In milliseconds since 1970; Infinity where the token does not tell. @param {string} token */
function expiryOf(token) {
  try {
    const { exp } = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return typeof exp === "number" ? exp * 1000 : Infinity;
  } catch {
    return Infinity;
  }
}

/** @param {Response} response */
async function readEnvelope(response) {
  const reply = await response.json().catch(() => null);
  if (response.ok && reply?.success) return reply.data;
  if (response.ok) throw noAnswer(new Error("The answer is cut off, or not the service's"));
  const { code = "HTTP_ERROR", message = `HTTP ${response.status}`, details } = reply?.error ?? {};
  const seconds = parseFloat(response.headers.get("Retry-After") ?? "");
  const retryAfterMs = seconds >= 0 ? seconds * 1000 : undefined;
  throw new PipelineError(message, code, response.status, { details, retryAfterMs });
}

/** @param {unknown} cause */
function noAnswer(cause) {
  return new PipelineError("The service cannot be reached", "NETWORK_ERROR", 0, { cause });
}

/** Not FormData: a Blob knows its size and streams, whatever sends it. @param {Blob} file @param {string} category */
function multipart(file, category) {
  const boundary = randomHex();
  const fields =
    `--${boundary}\r\nContent-Disposition: form-data; name="category"\r\n\r\n${category}\r\n` +
    `--${boundary}\r\nContent-Disposition: form-data; name="image"; filename="photo"\r\n` +
    "Content-Type: application/octet-stream\r\n\r\n"; // an image is what its bytes say
  return new Blob([fields, file, `\r\n--${boundary}--\r\n`], { type: `multipart/form-data; boundary=${boundary}` });
}

/** @param {Blob} body @param {OnProgress} onProgress */
function countedStream(body, onProgress) {
  let sent = 0;
  return new ReadableStream({
    async pull(controller) {
      const chunk = await body.slice(sent, sent + CHUNK_BYTES).arrayBuffer();
      controller.enqueue(new Uint8Array(chunk));
      sent += chunk.byteLength;
      onProgress(sent, body.size);
      if (sent >= body.size) controller.close();
    },
  });
}

/**
 * A browser's fetch does not tell how far the body is.
 * @param {string} url @param {Sending} sending @param {OnProgress} onProgress @returns {Promise<Response>}
 */
function sendByXhr(url, { method, headers, body, signal }, onProgress) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onProgress(loaded, total);
    request.onload = () => {
      const headers = { "Retry-After": request.getResponseHeader("Retry-After") ?? "" };
      resolve(new Response(request.responseText || null, { status: request.status, headers }));
    };
    request.onerror = request.onabort = () => reject(new TypeError("Network error"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

/** @param {number} ms @param {AbortSignal} [signal] */
function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** Not crypto.randomUUID: browsers have that on https only. */
function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
