/**
 * The component <photo-queue>: a person drops, chooses, pastes or takes photos and follows each to its result, also
 * through network failures, reloads and crashes. For browsers of 2024 or newer; needs only the files beside it.
 *
 * Attributes: `url` of the service (by default the page's own), `category` at the start.
 * Properties: `url`, `category`, `token` (a string, or a function that returns a fresh one and may be async).
 * Events: `photo-accepted` with {assetId, name, category}, `photo-finished` with the service's asset_processed,
 * `photo-unauthorized` when the service refuses the token.
 *
 * Long because the element has its public properties and the parts that it connects in one class.
 *
 * @typedef {import("./photos/photos.js").Photo} Photo
 */

import { claimsOf } from "./tokens.js";
import { Deletions } from "./photos/deletions.js";
import { Details } from "./photos/details.js";
import { DropArea } from "./photos/drop-area.js";
import { h } from "./photos/elements.js";
import { PhotoList } from "./photos/list.js";
import { Messages } from "./photos/messages.js";
import { Preferences } from "./photos/preferences.js";
import { Row } from "./photos/row.js";
import { aboutOf, userOf } from "./photos/service.js";
import { sheet } from "./photos/style.js";
import { Summary } from "./photos/summary.js";
import { counted, nameOf, refusal } from "./photos/words.js";
import { Work } from "./photos/work.js";

const TIME_PASSES_MS = 15_000;
// How long after a new token function was set its user is read.
const CHECK_MS = 1000;

export class PhotoQueue extends HTMLElement {
  static observedAttributes = ["url", "category"];

  #token = /** @type {any} */ ("");
  /** @type {Work | null} */ #work = null;
  /** @type {AbortController | null} ends the present work */ #running = null;
  #preferences = new Preferences();
  #isPlanned = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #checking;
  /** Returns the token, as long as it belongs to the user whose photos are shown. @type {() => Promise<any>} */ #ofUser =
    async () => "";
  /** The token that the service has refused. @type {unknown} */ #refused = "";
  /** @type {unknown} */ #newest = "";
  #isLeaving = false;
  /** The service has not answered since the page was opened. */ #isUnanswered = false;
  #isChanging = false;
  /** @type {AbortController | null} */ #sleeping = null;
  /** Gets the focus after a photo was deleted. @type {Photo | null} */ #afterDeleted = null;
  /** @type {File[]} files that were added before the service had answered */ #early = [];

  #messages = new Messages(() => this.#list.focus(this.#afterDeleted));
  #details = new Details();
  #summary = new Summary();
  #drop = new DropArea((files) => this.add(files));
  #list = new PhotoList(
    (photo) => this.#row(photo),
    () => this.#work?.more().then(() => this.#list.checkEnd()),
  );
  #deletions = new Deletions(this.#messages, {
    hide: (photo, isHidden) => this.#work?.hide(photo, isHidden),
    delete: (photo) => this.#work?.delete(photo, this.#isLeaving),
  });
  #skeleton = h(
    "div",
    { class: "skeleton", "aria-hidden": "true" },
    [1, 2, 3, 4].map(() =>
      h("div", { class: "photo" }, h("span", { class: "picture" }), h("span", { class: "body" }, h("i"), h("i"))),
    ),
  );
  #frame = h(
    "div",
    // Its words are English in every page.
    { class: "frame", lang: "en", dir: "ltr", "data-view": "loading" },
    this.#drop.element,
    h(
      "section",
      { class: "photos", "aria-label": "Your photos" },
      this.#summary.element,
      this.#skeleton,
      this.#list.element,
    ),
    this.#messages.element,
    this.#details.element,
  );

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet];
    root.append(this.#frame);
    this.#drop.onCategory = (category) => this.#preferences.set("category", category);
  }

  get url() {
    return this.getAttribute("url") || location.origin;
  }

  set url(url) {
    this.setAttribute("url", url);
  }

  get category() {
    return this.#drop.category;
  }

  set category(category) {
    this.setAttribute("category", category);
  }

  /** @returns {string | (() => string | Promise<string>)} */
  get token() {
    return this.#token;
  }

  set token(token) {
    const isRedrawn = typeof token === "function" && typeof this.#token === "function" && this.#running;
    this.#token = token;
    if (!isRedrawn) {
      this.#plan();
      return;
    }
    // Frameworks create a new function with each rendering: restart only if it returns the token of another user.
    this.#checking ??= setTimeout(() => {
      this.#checking = undefined;
      this.#ofUser().then(
        (now) => this.#refused && now !== this.#refused && this.#plan(),
        () => {},
      );
    }, CHECK_MS);
  }

  /** How many photos the service has not accepted yet. */
  get unsent() {
    return this.#early.length + (this.#work?.photos.unsent ?? 0);
  }

  /** Send these. @param {Iterable<File>} files */
  async add(files) {
    const all = [...files];
    if (!all.length) return;
    if (!this.#work) {
      this.#early.push(...all);
      if (this.#isUnanswered) this.#showUnanswered();
      return;
    }
    const refused = await this.#work.add(all, this.#drop.category);
    const added = all.length - refused.length;
    if (added) this.#messages.say(`${counted(added, "photo")} added.`);
    if (refused.length) this.#messages.show(refusal(refused), { kind: "bad", ms: 12_000 });
    // The new photos are on top.
    if (added && this.getBoundingClientRect().top < 0) this.scrollIntoView({ block: "start" });
  }

  /** Stop all uploads of this user and discard unsent photos. */
  async clear() {
    const work = this.#work;
    this.#deletions.now();
    this.#work = null;
    this.#end();
    await work?.close({ clears: true });
  }

  connectedCallback() {
    // Properties that were set before the browser knew this element.
    for (const name of ["url", "category", "token"]) {
      if (!Object.hasOwn(this, name)) continue;
      const value = /** @type {any} */ (this)[name];
      delete (/** @type {any} */ (this)[name]);
      /** @type {any} */ (this)[name] = value;
    }
    this.#plan();
    // A frozen page gives up the locks that other tabs wait for; when it continues, it reads everything again.
    this.#sleeping = new AbortController();
    const { signal } = this.#sleeping;
    addEventListener("pagehide", () => this.#end(), { signal });
    addEventListener("pageshow", ({ persisted }) => persisted && this.#plan(), { signal });
    document.addEventListener("freeze", () => this.#end(), { signal });
    document.addEventListener("resume", () => this.#plan(), { signal });
  }

  disconnectedCallback() {
    this.#sleeping?.abort();
    this.#plan();
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (before === now) return;
    if (name === "category") this.#drop.choose(now ?? "");
    else this.#plan();
  }

  /** Restart with the present properties, once all are set. */
  #plan() {
    if (this.#isPlanned) return;
    this.#isPlanned = true;
    queueMicrotask(() => {
      this.#isPlanned = false;
      this.#end();
      if (this.isConnected && this.#token) this.#begin();
    });
  }

  #end() {
    this.#running?.abort();
    this.#running = null;
    this.#isLeaving = true;
    this.#deletions.now();
    this.#isLeaving = false;
    this.#work?.close();
    this.#work = null;
    this.#details.element.close();
    this.#list.clear();
  }

  async #begin() {
    const { signal } = (this.#running = new AbortController());
    this.#refused = "";
    this.#drop.listen(this, signal);
    const onError = (/** @type {any} */ error) => this.#problem(error.message);
    const sub = await userOf(() => this.#token, signal, onError).catch(() => null);
    if (signal.aborted) return;
    const owner = `${sub} ${new URL(this.url).origin}`;
    const preferences = (this.#preferences = new Preferences(owner));
    this.#frame.dataset.view = preferences.get("has-photos") ? "loading" : "empty";
    const category = this.getAttribute("category") ?? preferences.get("category");
    const known = preferences.get("about");
    if (known) this.#drop.show(JSON.parse(known), category);
    const about = await aboutOf(this.url, preferences, signal, (failures) => {
      this.#isUnanswered = true;
      if (!failures) this.#showUnanswered();
    });
    if (signal.aborted) return;
    this.#isUnanswered = false;
    if (JSON.stringify(about) !== known) this.#drop.show(about, category);
    this.#ofUser = () => this.#tokenOf(sub);
    const token = typeof this.#token === "function" ? this.#ofUser : this.#token;
    this.#work = new Work({ url: this.url, token, owner, about, list: this.#list }, this.#callbacks());
    const timer = setInterval(() => this.#list.updateAll(), TIME_PASSES_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
    this.#work.start();
    this.add(this.#early.splice(0));
    this.#changed();
  }

  /**
   * Return the token, as long as it belongs to this user: photos must not be sent in the name of another user.
   * @param {unknown} sub
   */
  async #tokenOf(sub) {
    const token = await (typeof this.#token === "function" ? this.#token() : this.#token);
    if (claimsOf(token ?? "").sub === sub) return (this.#newest = token);
    this.#plan();
    throw new Error("Another user has signed in");
  }

  #showUnanswered() {
    const count = this.#early.length;
    const wait = count ? ` ${counted(count, "photo is", "photos are")} waiting: leave this page open.` : "";
    this.#problem(`The service cannot be reached. This page keeps trying.${wait}`);
  }

  /** @returns {import("./photos/work.js").Callbacks} */
  #callbacks() {
    return {
      changed: () => this.#changed(),
      accepted: (detail) => this.#fire("photo-accepted", detail),
      finished: (photo, frame) => {
        this.#fire("photo-finished", frame);
        if (frame.error === "Cancelled") this.#messages.say("Cancelled.", "photos are cancelled");
        else if (frame.status === "failed") this.#messages.say(`A photo failed: ${frame.error}`, "photos failed");
        else this.#messages.say(`${nameOf(photo)} is ready.`, "photos are ready");
      },
      unauthorized: () => {
        // The connection reports it, and so does each request.
        if (this.#refused) return;
        this.#refused = this.#newest || this.#token;
        if (this.#fire("photo-unauthorized", {}))
          this.#problem("Your sign-in is no longer accepted. Sign in again to send the waiting photos.");
      },
      problem: (problem) => this.#problem(problem),
      hasMore: (hasMore) => (this.#list.hasMore = hasMore),
    };
  }

  #changed() {
    if (this.#isChanging) return;
    this.#isChanging = true;
    requestAnimationFrame(() => {
      this.#isChanging = false;
      const work = this.#work;
      if (!work) return;
      const { all } = work.photos;
      const shown = all.filter(({ isHidden }) => !isHidden);
      this.#frame.dataset.view = shown.length ? "full" : work.isLoaded ? "empty" : this.#frame.dataset.view;
      if (work.isLoaded) this.#preferences.set("has-photos", shown.length ? "yes" : "");
      this.#summary.show({
        connection: work.connection,
        transport: work.transport,
        photos: shown,
        hasMore: this.#list.hasMore,
      });
      this.#details.update();
      this.#messages.offline(work.connection === "offline");
    });
  }

  /** @param {Photo} photo */
  #row(photo) {
    const busy =
      (/** @type {(work: Work) => Promise<unknown>} */ act) =>
      async (/** @type {any} */ _, /** @type {HTMLButtonElement} */ button) => {
        if (button.ariaDisabled) return;
        button.ariaDisabled = "true"; // a disabled one would lose the focus
        await (this.#work && act(this.#work));
        button.ariaDisabled = null;
      };
    return new Row(photo, {
      open: () => this.#details.open(photo),
      correct: async (_, values) => this.#work?.correct(photo, values),
      retry: busy((work) => work.retry(photo)),
      cancel: busy((work) => work.cancel(photo)),
      remove: (_, isByKeyboard) => {
        this.#afterDeleted = this.#list.nextTo(photo);
        this.#list.focus(this.#afterDeleted);
        this.#deletions.add(photo, isByKeyboard);
      },
      freshPicture: async () => {
        const { images } = (await this.#work?.fresh(photo)) ?? {};
        return images?.previews?.["320"]?.url ?? images?.original?.url ?? "";
      },
    });
  }

  /** @param {any} problem */
  #problem(problem) {
    this.#messages.show(String(problem?.message ?? problem), { kind: "bad", ms: 10_000 });
  }

  /** @param {string} name @param {object} detail */
  #fire(name, detail) {
    return this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true, cancelable: true }));
  }
}

customElements.define("photo-queue", PhotoQueue);
