/** Reads what <photo-queue> needs before it can show photos: the user of the token, and the facts about the service. */

import { backoffMs, sleep } from "../delays.js";
import { readEnvelope } from "../http.js";
import { claimsOf, Tokens } from "../tokens.js";

/**
 * Return the user of the token; retry until there is a token.
 * @param {() => any} tokenOf the token or its function, which may be replaced meanwhile
 * @param {AbortSignal} signal
 * @param {(error: unknown) => void} onError
 * @returns {Promise<unknown>}
 */
export async function userOf(tokenOf, signal, onError) {
  for (let failures = 0; ; failures++) {
    try {
      return claimsOf(await new Tokens(tokenOf()).fresh()).sub;
    } catch (error) {
      onError(error);
    }
    await sleep(backoffMs(failures), signal);
  }
}

/**
 * Return the facts about the service, or those of an earlier time while it does not answer; retry until there are some.
 * @param {string} url
 * @param {import("./preferences.js").Preferences} preferences
 * @param {AbortSignal} signal
 * @param {(failures: number) => void} onUnanswered is called with the number of failures before this one
 * @returns {Promise<any>} null when the signal has ended it
 */
export async function aboutOf(url, preferences, signal, onUnanswered) {
  for (let failures = 0; ; failures++) {
    try {
      const address = `${new URL(url).href.replace(/\/+$/, "")}/api/about`;
      const about = await readEnvelope(await fetch(address, { signal }));
      preferences.set("about", JSON.stringify(about));
      return about;
    } catch {
      const known = preferences.get("about");
      if (known || signal.aborted) return JSON.parse(known || "null");
      onUnanswered(failures);
      await sleep(backoffMs(failures), signal).catch(() => {});
    }
  }
}
