/**
 * The choice of the transport: the best that works. A transport that cannot be opened twice in a row, or is open and
 * mute, is replaced by the one below; the one above is tried again later, while the lower one is in use.
 *
 * @typedef {"socket" | "sse" | "poll"} TransportName
 *
 * @typedef {object} Times in milliseconds
 * @property {number} connectMs an attempt may take
 * @property {number} silenceMs without a byte from the service, which pings every 25 s
 * @property {number} longestSilenceMs between reads of the list, where pings are invisible
 * @property {number} climbMs until the transport above is tried again
 * @property {number} longestClimbMs what that grows to
 */

/** @type {TransportName[]} */
const RUNGS = ["socket", "sse", "poll"];
const MISSES = 2;
const PROBE_MS = 5_000;

/** @type {Times} */
export const TIMES = {
  connectMs: 10_000,
  silenceMs: 40_000,
  longestSilenceMs: 600_000,
  climbMs: 60_000,
  longestClimbMs: 600_000,
};

export class Ladder {
  #rung = 0;
  #misses = 0;
  /** whether the last probe did not reach the service, or got no answer that the page may read */ #wasAway = false;
  /** @type {Promise<"here" | "unreachable" | "foreign"> | undefined} */ #settled;
  #times;
  #probe;
  #climbMs;
  /** @type {number | undefined} when the rung above is tried; undefined until that is planned */ #climbAt;
  #enteredAt = 0;

  /** @param {Times} times @param {() => Promise<"here" | "unreachable" | "foreign">} probe whether plain HTTP works */
  constructor(times, probe) {
    this.#times = times;
    this.#probe = probe;
    this.#climbMs = times.climbMs;
  }

  get name() {
    return RUNGS[this.#rung];
  }

  /** @returns {TransportName | undefined} */
  get above() {
    return RUNGS[this.#rung - 1];
  }

  /** Begin at the top. */
  restart() {
    this.#rung = this.#misses = 0;
    this.#wasAway = false;
    this.#settled = this.#climbAt = undefined;
    this.#climbMs = this.#times.climbMs;
  }

  /** @param {TransportName} name */
  entered(name) {
    this.#rung = RUNGS.indexOf(name);
    this.#misses = 0;
    this.#wasAway = false;
    this.#enteredAt = performance.now();
  }

  /**
   * The transport failed. Plain requests are tried at once: later the device may be in another network.
   * @param {boolean} isMute
   */
  missed(isMute) {
    if (++this.#misses >= MISSES || isMute) this.#settled = this.#settle(isMute);
  }

  /** The result of the probe after the last transport failed; undefined when there was no probe. */
  async settled() {
    const reachability = await this.#settled;
    this.#settled = undefined;
    return reachability;
  }

  /** @param {boolean} isMute */
  async #settle(isMute) {
    const rung = this.#rung;
    const reachability = await this.#probe();
    const wasAway = this.#wasAway;
    this.#wasAway = reachability !== "here";
    // Otherwise the service is away, or the ladder was restarted in between.
    if (reachability !== "here" || rung !== this.#rung || !this.#misses) return reachability;
    this.#misses = 0;
    // The service came back after the transport had failed: that was not the transport's fault.
    if (wasAway && !isMute) return reachability;
    // After the last one the first is tried again.
    this.#rung = (this.#rung + 1) % RUNGS.length;
    this.#climbAt = undefined;
    if (performance.now() - this.#enteredAt > this.#times.longestClimbMs) this.#climbMs = this.#times.climbMs;
    return reachability;
  }

  /** How long until the transport above is tried; a reconnection in between does not delay it. */
  nextClimbMs() {
    if (this.#climbAt === undefined) {
      this.#climbAt = performance.now() + this.#climbMs;
      this.#climbMs = Math.min(2 * this.#climbMs, this.#times.longestClimbMs);
    }
    return Math.max(0, this.#climbAt - performance.now());
  }

  /** The transport above is tried now. */
  tried() {
    this.#climbAt = undefined;
  }
}

/**
 * Whether plain requests reach the service. foreign: they do, but the service does not let this page read the answer.
 * @param {string} url @param {(url: string, options: any) => Promise<Response>} send
 * @returns {Promise<"here" | "unreachable" | "foreign">}
 */
export async function probe(url, send) {
  const options = () => ({ method: "GET", headers: {}, cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) });
  try {
    const response = await send(`${url}/livez`, { ...options(), mode: "no-cors" });
    await response.body?.cancel();
    if (response.status >= 500) return "unreachable";
  } catch {
    return "unreachable";
  }
  const origin = globalThis.location?.origin;
  if (origin === undefined || origin === new URL(url).origin) return "here";
  // Any answer suffices, also that a token is missing.
  return send(`${url}/api/assets?limit=1`, options()).then(
    () => "here",
    () => "foreign",
  );
}
