/**
 * Requests to the service: with retries where they can help, and with a token that is valid long enough.
 *
 * @typedef {{method: string, headers: Record<string, string>, body?: Blob | string, keepalive?: boolean, signal: AbortSignal}} Sending
 * @typedef {(url: string, sending: Sending) => Promise<Response>} Send
 * @typedef {{send?: Send, tries?: number, onDate?: (date: string) => void}} Options onDate: gets the Date of a good reply
 * @typedef {(sentBytes: number, totalBytes: number) => void} OnProgress
 */

import { backoffMs, ended, sleep } from "./delays.js";

const TRIES = 5;
const LONGEST_RETRY_AFTER_MS = 60_000;
const LONGEST_TOO_MANY_MS = 300_000; // with several processes a limit may name two minutes, see pipeline/usecases/limits.py
const TIMEOUT_MS = { GET: 30_000, PATCH: 30_000, DELETE: 30_000, POST: 300_000 }; // 300 s: the service's limit for an upload
const CHUNK_BYTES = 64 * 1024;

/** The service's error, or the reason why the service could not be reached. */
export class PipelineError extends Error {
  /**
   * @param {string} message for people
   * @param {string} code the envelope's, or NETWORK_ERROR, HTTP_ERROR (no envelope), TOKEN_UNAVAILABLE, REFUSED,
   *   ORIGIN_NOT_ALLOWED, CLOSED
   * @param {number} status of HTTP; the close code of the WebSocket; 0 without an answer
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

export class Http {
  #url;
  #send;
  #tokens;
  /** @type {Promise<unknown>} the last of the requests that wait */ #queue = Promise.resolve();

  /** @param {string} url @param {Send} send @param {import("./tokens.js").Tokens} tokens */
  constructor(url, send, tokens) {
    this.#url = url;
    this.#send = send;
    this.#tokens = tokens;
  }

  /**
   * @param {"GET" | "POST" | "PATCH" | "DELETE"} method
   * @param {string} path
   * @param {Partial<Sending> & Options} [options]
   */
  async request(method, path, options = {}) {
    try {
      return await this.#persist(method, path, options);
    } catch (error) {
      if (!isTooMany(error) || (options.tries ?? TRIES) === 1) throw error;
      const freeAt = performance.now() + error.retryAfterMs;
      return this.#inOrder(() => this.#wait(method, path, options, freeAt), options.signal);
    }
  }

  /**
   * Requests over the limit are repeated one after the other: all at once they would be refused again.
   * @template T @param {() => Promise<T>} act @param {AbortSignal} [signal] @returns {Promise<T>}
   */
  #inOrder(act, signal) {
    const before = this.#queue;
    const result = ended(before, signal).then(act);
    // Also after an abort the next request waits for those before.
    this.#queue = Promise.allSettled([before, result]).then(() => undefined);
    return result;
  }

  /**
   * Repeat the request until the limit allows it.
   * @param {"GET" | "POST" | "PATCH" | "DELETE"} method @param {string} path @param {Partial<Sending> & Options} options
   * @param {number} freeAt when the limit allows it, by performance.now(); that time may have passed when the request is next
   */
  async #wait(method, path, options, freeAt) {
    for (;;) {
      options.signal?.throwIfAborted();
      const waitMs = freeAt - performance.now();
      if (waitMs > 0) await sleep(waitMs, options.signal);
      try {
        return await this.#persist(method, path, options);
      } catch (error) {
        if (!isTooMany(error)) throw error;
        freeAt = performance.now() + error.retryAfterMs;
      }
    }
  }

  /** @param {"GET" | "POST" | "PATCH" | "DELETE"} method @param {string} path @param {Partial<Sending> & Options} options */
  async #persist(method, path, options) {
    const { headers, body, keepalive, signal, send = this.#send, tries = TRIES, onDate } = options;
    let isTokenRetried = !this.#tokens.canRenew;
    for (let failures = 0; ;) {
      try {
        signal?.throwIfAborted();
        const token = await this.#tokens.livingFor(30_000); // time to get there
        const timeout = AbortSignal.timeout(TIMEOUT_MS[method]);
        const response = await send(this.#url + path, {
          method,
          headers: { ...headers, Authorization: `Bearer ${token}` },
          body,
          keepalive,
          signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
        });
        const data = await readEnvelope(response);
        const date = response.headers.get("Date");
        if (date) onDate?.(date);
        return data;
      } catch (cause) {
        signal?.throwIfAborted();
        const error = cause instanceof PipelineError ? cause : noAnswer(cause);
        if (isTooMany(error)) throw error;
        // A 401 with Retry-After means that the token is not valid yet.
        const isTooEarly = error.status === 401 && error.retryAfterMs !== undefined;
        if (error.status === 401 && !isTooEarly && !isTokenRetried) {
          isTokenRetried = true;
          this.#tokens.newest = undefined;
          continue;
        }
        // This photo may be the cause of a 500; to repeat a read or a deletion does no harm.
        const isPassing =
          error.status === 500 ? ["GET", "DELETE"].includes(method) : [0, 429, 502, 503, 504].includes(error.status);
        const waitMs = error.retryAfterMs ?? backoffMs(failures);
        const isTooLong = waitMs > LONGEST_RETRY_AFTER_MS && tries < Infinity;
        if (!(isPassing || isTooEarly) || isTooLong || ++failures >= tries) throw error;
        await sleep(Math.min(waitMs, LONGEST_RETRY_AFTER_MS), signal);
      }
    }
  }

  /** @param {OnProgress} onProgress @returns {Send} */
  sendWithProgress(onProgress) {
    if (globalThis.XMLHttpRequest) return (url, sending) => sendByXhr(url, sending, onProgress);
    return (url, { body: given, ...sending }) => {
      const body = /** @type {Blob} */ (given ?? new Blob());
      const headers = { ...sending.headers, "Content-Type": body.type };
      const streamed = { ...sending, headers, body: countedStream(body, onProgress), duplex: "half" };
      return this.#send(url, /** @type {any} */ (streamed));
    };
  }
}

/**
 * The user has reached a limit, and the service names a retry delay.
 * @param {any} error @returns {error is PipelineError & {retryAfterMs: number}}
 */
function isTooMany(error) {
  return error?.status === 429 && error.retryAfterMs <= LONGEST_TOO_MANY_MS;
}

/** @param {Response} response */
export async function readEnvelope(response) {
  if (response.status === 204) return undefined;
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

/** A Blob and no FormData: it knows its size, and fetch and XMLHttpRequest can stream it. @param {Blob} file @param {string} category */
export function multipart(file, category) {
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
 * fetch in browsers reports no progress of the body.
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
      const pairs = ["Retry-After", "Date"].map((name) => [name, request.getResponseHeader(name) ?? ""]);
      const headers = Object.fromEntries(pairs);
      resolve(new Response(request.responseText || null, { status: request.status, headers }));
    };
    request.onerror = request.onabort = () => reject(new TypeError("Network error"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

/** Not crypto.randomUUID, which browsers have on https only. */
export function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
