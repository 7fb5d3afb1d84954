/** What photo-queue.js has, and <photo-queue> for the DOM and for JSX; a test compares the two. */

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
  /** The one to begin with. */
  get category(): string;
  set category(category: string);
  get token(): Token;
  set token(token: Token);
  /** How many photos the service has not accepted yet. */
  get unsent(): number;
  /** Send these. */
  add(files: Iterable<File>): Promise<void>;
  /** End all work for this user and forget what was not sent. */
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
