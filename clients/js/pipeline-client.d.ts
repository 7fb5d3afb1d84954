/** What pipeline-client.js has; a test compares the two. */

import type { Asset, AssetPage, AssetQuery, AttributeName, ErrorCode, ErrorDetail, Frames, Receipt } from "./types.js";

export type * from "./types.js";

/** How events come. */
export type TransportName = "socket" | "sse" | "poll";

/** When a transport counts as broken, in milliseconds. */
export interface Times {
  /** An attempt may take so long. */
  connectMs: number;
  /** Without a byte from the service, which pings every 25 s. */
  silenceMs: number;
  /** Between looks at the list, where pings cannot be seen. */
  longestSilenceMs: number;
  /** Until the transport above is tried again. */
  climbMs: number;
  /** What that grows to. */
  longestClimbMs: number;
}

/** What `on` listens to. */
export interface Events extends Frames {
  connected: { room: string; serverTime: string };
  /** code 1006: the connection broke or never came about; willReconnect: false at the end. */
  disconnected: { code: number; willReconnect: boolean; retryInMs: number | null };
  transport: { transport: TransportName };
  /** The client gave up, or a function of the app failed. */
  error: Error;
}

/** A string, or a function that is asked for a fresh one. */
export type Token = string | (() => string | Promise<string>);

export interface ClientOptions {
  /** Of the service, e.g. "https://photos.example.com". */
  url: string;
  token: Token;
  /** Hear also of what finished after this: `client.since` of an earlier life. */
  since?: string;
  /** Hear also of the steps before the end. */
  progress?: boolean;
  /** Hear also how the whole service is. */
  operators?: boolean;
  times?: Partial<Times>;
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
  fetch?: typeof globalThis.fetch;
}

export interface UploadOptions {
  /** One of those the service takes (its setting CATEGORIES). */
  category: string;
  /** One of your own makes a repeat in another life of the app safe too. */
  idempotencyKey?: string;
  /** Of the whole body; starts anew when it is sent again. */
  onProgress?: (sentBytes: number, totalBytes: number) => void;
  signal?: AbortSignal;
  /** How often it is sent at most; 5 by default. */
  tries?: number;
}

/** What is in a photo: a text counts for good, null gives the field back to the AI. */
export type Said = { [Name in AttributeName]?: string | null };

/** The code of a PipelineError: the service's own, or one of the client's. */
export type PipelineErrorCode =
  | ErrorCode
  | "NETWORK_ERROR"
  | "HTTP_ERROR"
  | "TOKEN_UNAVAILABLE"
  | "REFUSED"
  | "ORIGIN_NOT_ALLOWED"
  | "CLOSED";

/** What the service refused, in the words of its envelope, or what kept us from reaching it. */
export class PipelineError extends Error {
  constructor(
    message: string,
    code: PipelineErrorCode,
    status: number,
    more?: { details?: ErrorDetail[]; retryAfterMs?: number; cause?: unknown },
  );
  code: PipelineErrorCode;
  /** Of HTTP; the close code of the WebSocket; 0 where no answer came. */
  status: number;
  details: ErrorDetail[];
  retryAfterMs: number | undefined;
}

/** Uploads photos and hears of every result. One client is for one user. */
export class PipelineClient {
  constructor(options: ClientOptions);
  /** All events up to this time have been handed on. */
  get since(): string | undefined;
  /** How events come, or came last; null before the first connection. */
  get transport(): TransportName | null;
  /** Call the listener with each event of that name; return a function that ends it. */
  on<Name extends keyof Events>(name: Name, listener: (detail: Events[Name]) => unknown): () => void;
  /** Connect, and reconnect whenever the connection breaks, until close(). Resolves with the room. */
  connect(): Promise<string>;
  /** End the connection and all that would bring it back. */
  close(): void;
  /** Upload a photo: it may be sent several times, and is accepted once. */
  upload(file: Blob, options: UploadOptions): Promise<Receipt>;
  asset(id: string): Promise<Asset>;
  /** A page of one's own assets: newest first; with finishedSince oldest first. */
  assets(query?: AssetQuery): Promise<AssetPage>;
  /** Say what is in the photo. */
  correct(id: string, said: Said): Promise<Asset>;
  /** End the work on an asset; 409 when it has ended. */
  cancel(id: string): Promise<Asset>;
  /** Let the AI look at a failed or partial photo again; 409 for any other. */
  retry(id: string): Promise<Receipt>;
  /** Delete an asset with its images; one that is gone already is fine. */
  remove(id: string, options?: { keepalive?: boolean }): Promise<void>;
}
