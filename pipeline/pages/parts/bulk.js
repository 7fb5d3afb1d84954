/** One action for all jobs that match a filter. */

/**
 * Ask with the count and a sample, do it in chunks with progress, and tell what was done with a way to undo it.
 * @param {object} given
 * @param {import("../api.js").Api} given.api
 * @param {"retry" | "cancel" | "postpone" | "delete"} given.action
 * @param {Record<string, string>} given.filter as GET /api/queue/jobs takes it
 * @param {string} [given.title] the question, like "Cancel all waiting jobs of anna?"
 * @returns {Promise<boolean>} whether anything was done
 */
export async function runBulk(given) {
  throw new Error(`Not yet: ${given.action}`);
}
