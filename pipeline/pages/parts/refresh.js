/** Repeats an action while the tab is visible. */

/**
 * Run at once, then `ms` after each end; not while the tab is hidden, and at once when it is visible again.
 * @param {number} ms
 * @param {() => unknown} run
 * @returns {() => void} ends it
 */
export function every(ms, run) {
  /** @type {ReturnType<typeof setTimeout>} */ let timer;
  let isOver = false;
  const go = async () => {
    clearTimeout(timer);
    if (document.visibilityState === "hidden") return;
    await run();
    clearTimeout(timer);
    if (!isOver) timer = setTimeout(go, ms);
  };
  document.addEventListener("visibilitychange", go);
  go();
  return () => {
    isOver = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", go);
  };
}
