/** The types of photo-queue.js, and of <photo-queue> in the DOM and in JSX; a test compares them with the code. */

import type { AssetProcessed, Token } from "./pipeline-client.js";

export interface PhotoAccepted {
  assetId: string;
  name: string;
  category: string;
}

export interface PhotoQueueEvents {
  "photo-accepted": CustomEvent<PhotoAccepted>;
  "photo-finished": CustomEvent<AssetProcessed>;
  "photo-unauthorized": CustomEvent<Record<string, never>>;
}

export class PhotoQueue extends HTMLElement {
  static observedAttributes: string[];
  /** Of the service; by default the page's own origin. */
  get url(): string;
  set url(url: string);
  /** The category at the start. */
  get category(): string;
  set category(category: string);
  get token(): Token;
  set token(token: Token);
  /** How many photos the service has not accepted yet. */
  get unsent(): number;
  /** Send these. */
  add(files: Iterable<File>): Promise<void>;
  /** Stop all uploads of this user and discard unsent photos. */
  clear(): Promise<void>;
  connectedCallback(): void;
  disconnectedCallback(): void;
  attributeChangedCallback(name: string, before: string | null, now: string | null): void;
  addEventListener<Name extends keyof PhotoQueueEvents>(
    type: Name,
    listener: (this: PhotoQueue, event: PhotoQueueEvents[Name]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener<Name extends keyof HTMLElementEventMap>(
    type: Name,
    listener: (this: HTMLElement, event: HTMLElementEventMap[Name]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** The properties of <photo-queue> in JSX, beside those of every element. React 19 or newer. */
export interface PhotoQueueProps {
  url?: string;
  category?: string;
  token?: Token;
  "onphoto-accepted"?: (event: CustomEvent<PhotoAccepted>) => void;
  "onphoto-finished"?: (event: CustomEvent<AssetProcessed>) => void;
  "onphoto-unauthorized"?: (event: CustomEvent<Record<string, never>>) => void;
}

declare global {
  interface HTMLElementTagNameMap {
    "photo-queue": PhotoQueue;
  }
}
