/**
 * The client's reaction to each close code of the service; contracts/close-codes.json has the meanings.
 * final: do not reconnect until something has been changed.
 * token: reconnect once, at once, with a fresh token.
 * reconnect: reconnect with a growing retry delay.
 *
 * @type {Record<number, "final" | "token" | "reconnect">}
 */
export const CLOSE_CODES = {
  1002: "final",
  1007: "final",
  1009: "final",
  1011: "reconnect",
  1012: "reconnect",
  1013: "reconnect",
  4400: "final",
  4401: "token",
  4403: "token",
  4419: "token",
  4429: "reconnect",
  4503: "reconnect",
  4504: "reconnect",
};

export const BROKEN = 1006; // no code was received
export const TOO_MANY = 4429;

/** @param {number} code @returns {"final" | "token" | "reconnect"} */
export function roleOf(code) {
  // A code of a later version: 44xx means that something must be changed first.
  return CLOSE_CODES[code] ?? (code >= 4400 && code < 4500 ? "final" : "reconnect");
}
