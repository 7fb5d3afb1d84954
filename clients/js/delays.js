/** Retry delays and sleeps. */

const BACKOFF_MS = { first: 500, longest: 30_000 };

/**
 * A random delay up to the limit, so that clients that lost their connections together do not all return at once.
 * @param {number} failures
 */
export function backoffMs(failures) {
  return Math.random() * Math.min(BACKOFF_MS.longest, BACKOFF_MS.first * 2 ** failures);
}

/**
 * Resolve when the work has ended; reject at once when the signal is aborted.
 * @param {Promise<unknown>} work @param {AbortSignal} [signal]
 */
export function ended(work, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal?.reason);
    const finish = () => (signal?.removeEventListener("abort", stop), resolve(undefined));
    work.then(finish, finish);
    signal?.addEventListener("abort", stop, { once: true });
    if (signal?.aborted) stop();
  });
}

/** @param {number} ms @param {AbortSignal} [signal] */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const end = () => (clearTimeout(timer), reject(signal?.reason));
    const timer = setTimeout(() => (signal?.removeEventListener("abort", end), resolve(undefined)), ms);
    signal?.addEventListener("abort", end, { once: true });
  });
}
