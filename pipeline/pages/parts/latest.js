/** Requests of which only the newest counts: a newer one aborts the one before. */

import { isAbort } from "../api.js";

export class Latest {
  #alive = new AbortController();

  /**
   * @template T
   * @param {(signal: AbortSignal) => Promise<T>} ask
   * @param {{done: (result: T) => void, failed: (error: any) => void}} then neither is called after a newer request
   */
  async run(ask, { done, failed }) {
    this.dispose();
    const { signal } = this.#alive;
    try {
      const result = await ask(signal);
      if (!signal.aborted) done(result);
    } catch (error) {
      if (!signal.aborted && !isAbort(error)) failed(error);
    }
  }

  dispose() {
    this.#alive.abort();
    this.#alive = new AbortController();
  }
}
