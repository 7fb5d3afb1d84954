/** Calls the functions of the app, so that their errors cannot break the client. */

export class Listeners {
  /** @type {Map<string, Set<(detail: any) => unknown>>} */ #all = new Map();

  /** Return a function that removes the listener. @param {string} name @param {(detail: any) => unknown} listener */
  add(name, listener) {
    const listeners = this.#all.get(name) ?? new Set();
    this.#all.set(name, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** @param {string} name @param {unknown} detail */
  emit(name, detail) {
    const listeners = [...(this.#all.get(name) ?? [])];
    if (name === "error" && !listeners.length) console.error(detail);
    for (const listener of listeners) this.call(listener, [detail], name === "error" ? console.error : undefined);
  }

  /**
   * Call a function of the app at once; neither a throw nor a rejection gets through.
   * @param {(...parameters: any[]) => unknown} call
   * @param {unknown[]} parameters
   * @param {(error: unknown) => void} [onError]
   */
  call(call, parameters, onError = (error) => this.emit("error", error)) {
    new Promise((resolve) => resolve(call(...parameters))).catch(onError);
  }
}
