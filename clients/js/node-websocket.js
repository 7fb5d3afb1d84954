/**
 * The part of the standard WebSocket that pipeline-client.js uses, for Node 20, which has none: text frames, pings
 * answered, close codes. No extensions, no binary messages, and `on...` handlers instead of addEventListener.
 * RFC 6455; numbers in brackets are its sections.
 */

import { createHash, randomBytes } from "node:crypto";
import http from "node:http";
import https from "node:https";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // [1.3]
const MAX_MESSAGE_BYTES = 1024 * 1024;
const KEEP_ALIVE_MS = 30_000; // TCP finds out that the line is dead, ten seconds after this
const CLOSE_MS = 3_000;
const [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG] = [0, 1, 2, 8, 9, 10];

/** Why the connection fails; the code is what the other side is told. */
class Violation extends Error {
  /** @param {number} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class WebSocket {
  /** @type {(() => void) | null} */ onopen = null;
  /** @type {((event: {data: string}) => void) | null} */ onmessage = null;
  /** @type {((event: {code: number, reason: string}) => void) | null} */ onclose = null;
  /** @type {((event: {error: Error}) => void) | null} */ onerror = null;
  /** @type {(() => void) | null} the standard has none */ onping = null;
  readyState = 0;

  #request;
  /** @type {import("node:stream").Duplex | null} */ #socket = null;
  #received = Buffer.alloc(0);
  /** @type {Buffer[] | null} */ #fragments = null;
  #isCloseSent = false;
  #code = 1006;
  #reason = "";

  /** @param {string} url ws: or wss: @param {string[]} protocols of which the server must choose one, when given */
  constructor(url, protocols = []) {
    const key = randomBytes(16).toString("base64");
    const address = new URL(url.replace(/^ws/, "http"));
    this.#request = (address.protocol === "https:" ? https : http).request(address, {
      agent: false, // a connection kept alive from earlier may be dead
      headers: {
        Connection: "Upgrade",
        Upgrade: "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        ...(protocols.length && { "Sec-WebSocket-Protocol": protocols.join(", ") }),
      },
    });
    this.#request.on("upgrade", ({ headers }, socket, head) => {
      const accept = createHash("sha1").update(key + GUID).digest("base64");
      const protocol = headers["sec-websocket-protocol"];
      if (headers["sec-websocket-accept"] === accept && (!protocols.length || protocols.includes(protocol ?? ""))) {
        this.#open(socket, head);
      } else {
        socket.destroy();
        this.#closed(new Error("The answer to the handshake is wrong"));
      }
    });
    this.#request.on("response", (response) => {
      response.destroy();
      this.#closed(new Error(`The handshake was refused: HTTP ${response.statusCode}`));
    });
    this.#request.on("error", (error) => this.#closed(error));
    this.#request.end();
  }

  /** @param {string} text */
  send(text) {
    if (this.readyState === 1) this.#write(TEXT, Buffer.from(text));
  }

  /** @param {number} code @param {string} reason */
  close(code = 1000, reason = "") {
    if (this.readyState === 0) this.#request.destroy(new Error("Closed before it was open"));
    else if (this.readyState === 1) this.#sendClose(code, reason);
  }

  /** @param {import("node:stream").Duplex} socket @param {Buffer} head */
  #open(socket, head) {
    this.#socket = socket;
    const tcp = /** @type {import("node:net").Socket} */ (socket);
    tcp.setTimeout(0);
    tcp.setNoDelay(true);
    tcp.setKeepAlive(true, KEEP_ALIVE_MS);
    socket.on("data", (chunk) => this.#take(chunk));
    socket.on("error", (error) => this.onerror?.({ error }));
    socket.on("close", () => this.#closed());
    this.readyState = 1;
    this.onopen?.();
    if (head.length) this.#take(head);
  }

  /** @param {Error} [error] */
  #closed(error) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    if (error) this.onerror?.({ error });
    this.onclose?.({ code: this.#code, reason: this.#reason });
  }

  /** @param {Buffer} chunk */
  #take(chunk) {
    this.#received = Buffer.concat([this.#received, chunk]);
    try {
      while (this.#takeFrame());
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      this.onerror?.({ error });
      this.#sendClose(error.code, error.message);
      this.#socket?.end();
    }
  }

  /** Take one frame off what has been received; false when there is no whole one. [5.2] */
  #takeFrame() {
    const bytes = this.#received;
    if (bytes.length < 2) return false;
    const [isFinal, opcode] = [bytes[0] >= 0x80, bytes[0] & 0x0f];
    if (bytes[0] & 0x70) throw new Violation(1002, "An extension nobody agreed on");
    if (bytes[1] & 0x80) throw new Violation(1002, "A server must not mask");
    let [length, start] = [bytes[1], 2];
    if (opcode >= CLOSE && (length > 125 || !isFinal)) throw new Violation(1002, "A control frame too large");
    if (length === 126) {
      if (bytes.length < 4) return false;
      [length, start] = [bytes.readUInt16BE(2), 4];
    } else if (length === 127) {
      if (bytes.length < 10) return false;
      [length, start] = [Number(bytes.readBigUInt64BE(2)), 10];
    }
    const earlier = opcode < CLOSE ? (this.#fragments ?? []).reduce((sum, each) => sum + each.length, 0) : 0;
    if (earlier + length > MAX_MESSAGE_BYTES) throw new Violation(1009, "A message too large");
    if (bytes.length < start + length) return false;
    this.#received = bytes.subarray(start + length);
    this.#heed(opcode, isFinal, bytes.subarray(start, start + length));
    return true;
  }

  /** @param {number} opcode @param {boolean} isFinal @param {Buffer} payload */
  #heed(opcode, isFinal, payload) {
    if (opcode === PING) {
      this.#write(PONG, payload);
      this.onping?.();
    } else if (opcode === CLOSE) this.#heedClose(payload);
    else if (opcode === BINARY) throw new Violation(1003, "A binary message");
    else if (opcode === TEXT || opcode === CONTINUATION) {
      if ((opcode === TEXT) !== (this.#fragments === null)) throw new Violation(1002, "A fragment out of order");
      this.#fragments = [...(this.#fragments ?? []), payload];
      if (!isFinal) return;
      const data = decode(Buffer.concat(this.#fragments));
      this.#fragments = null;
      if (this.readyState === 1) this.onmessage?.({ data });
    } else if (opcode !== PONG) throw new Violation(1002, "An unknown frame");
  }

  /** @param {Buffer} payload */
  #heedClose(payload) {
    if (payload.length === 1) throw new Violation(1002, "Half a close code");
    this.#code = payload.length ? payload.readUInt16BE(0) : 1005;
    this.#reason = decode(payload.subarray(2));
    this.#sendClose(payload.length ? this.#code : 1000, "");
    this.#socket?.end();
  }

  /** @param {number} code @param {string} reason */
  #sendClose(code, reason) {
    if (this.#isCloseSent) return;
    const payload = Buffer.alloc(2 + Buffer.byteLength(reason));
    payload.writeUInt16BE(code);
    payload.write(reason, 2);
    this.#write(CLOSE, payload);
    this.#isCloseSent = true;
    this.readyState = 2;
    setTimeout(() => this.#socket?.destroy(), CLOSE_MS).unref(); // the other side may be gone
  }

  /** @param {number} opcode @param {Buffer} payload [5.3] */
  #write(opcode, payload) {
    if (this.#isCloseSent) return;
    const mask = randomBytes(4);
    const length = payload.length;
    const head = length < 126 ? Buffer.alloc(2) : length < 65536 ? Buffer.alloc(4) : Buffer.alloc(10);
    head[0] = 0x80 | opcode;
    head[1] = 0x80 | (length < 126 ? length : length < 65536 ? 126 : 127);
    if (head.length === 4) head.writeUInt16BE(length, 2);
    if (head.length === 10) head.writeBigUInt64BE(BigInt(length), 2);
    this.#socket?.write(Buffer.concat([head, mask, payload.map((byte, index) => byte ^ mask[index % 4])]));
  }
}

/** @param {Buffer} bytes */
function decode(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Violation(1007, "Text that is not UTF-8");
  }
}
