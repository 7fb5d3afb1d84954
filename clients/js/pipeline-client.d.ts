/** The types of pipeline-client.js; a test compares the two. */

import type { Asset, AssetPage, AssetQuery, AttributeName, ErrorCode, ErrorDetail, Frames, Receipt } from "./types.js";

export type * from "./types.js";

/** The transport of events. */
export type TransportName = "socket" | "sse" | "poll";

/** When a transport counts as broken, in milliseconds. */
export interface Times {
  /** Longest duration of an attempt. */
  connectMs: number;
  /** Without a byte from the service, which pings every 25 s. */
  silenceMs: number;
  /** Between reads of the list, where pings are invisible. */
  longestSilenceMs: number;
  /** Until the transport above is tried again. */
  climbMs: number;
  /** The longest value of climbMs, which doubles. */
  longestClimbMs: number;
}

/** The events for `on`. */
export interface Events extends Frames {
  connected: { room: string; serverTime: string };
  /** code 1006: the connection broke or was never made; willReconnect: false at the end. */
  disconnected: { code: number; willReconnect: boolean; retryInMs: number | null };
  transport: { transport: TransportName };
  /** The client gave up, or a function of the app failed. */
  error: Error;
}

/** A string, or a function that returns a fresh one. */
export type Token = string | (() => string | Promise<string>);

export interface ClientOptions {
  /** Of the service, e.g. "https://photos.example.com". */
  url: string;
  token: Token;
  /** Receive also events after this: `client.since` of an earlier client. */
  since?: string;
  /** Receive also the steps before the result. */
  progress?: boolean;
  /** Receive also the state of the service. */
  operators?: boolean;
  times?: Partial<Times>;
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
  fetch?: typeof globalThis.fetch;
}

export interface UploadOptions {
  /** One of the service's setting CATEGORIES. */
  category: string;
  /** Your own key also makes a repeat after a restart of the app safe. */
  idempotencyKey?: string;
  /** Of the whole body; begins at 0 when it is sent again. */
  onProgress?: (sentBytes: number, totalBytes: number) => void;
  signal?: AbortSignal;
  /** How often it is sent at most; 5 by default. */
  tries?: number;
}

/** Corrected fields: a text stays for good, null returns the field to the AI. */
export type Said = { [Name in AttributeName]?: string | null };

/** The code of a PipelineError: the service's own, or one of the client's. */
export type PipelineErrorCode =
  ErrorCode | "NETWORK_ERROR" | "HTTP_ERROR" | "TOKEN_UNAVAILABLE" | "REFUSED" | "ORIGIN_NOT_ALLOWED" | "CLOSED";

/** The service's error, or the reason why the service could not be reached. */
export class PipelineError extends Error {
  constructor(
    message: string,
    code: PipelineErrorCode,
    status: number,
    more?: { details?: ErrorDetail[]; retryAfterMs?: number; cause?: unknown },
  );
  code: PipelineErrorCode;
  /** Of HTTP; the close code of the WebSocket; 0 without an answer. */
  status: number;
  details: ErrorDetail[];
  retryAfterMs: number | undefined;
}

/** Uploads photos and receives every result. One client is for one user. */
export class PipelineClient {
  constructor(options: ClientOptions);
  /** All events up to this time have been delivered. */
  get since(): string | undefined;
  /** The present or last transport; null before the first connection. */
  get transport(): TransportName | null;
  /** Call the listener with each event of that name; return a function that ends it. */
  on<Name extends keyof Events>(name: Name, listener: (detail: Events[Name]) => unknown): () => void;
  /** Connect, and reconnect whenever the connection breaks, until close(). Resolves with the room. */
  connect(): Promise<string>;
  /** Close the connection and stop reconnecting. */
  close(): void;
  /** Upload a photo: it may be sent several times, and is accepted once. */
  upload(file: Blob, options: UploadOptions): Promise<Receipt>;
  asset(id: string): Promise<Asset>;
  /** A page of one's own assets: newest first; with finishedSince oldest first. */
  assets(query?: AssetQuery): Promise<AssetPage>;
  /** Correct fields of an asset. */
  correct(id: string, values: Said): Promise<Asset>;
  /** Cancel the job of an asset; 409 when it has ended. */
  cancel(id: string): Promise<Asset>;
  /** Let the AI look at a failed or partial photo again; 409 for any other. */
  retry(id: string): Promise<Receipt>;
  /** Delete an asset with its images; no error when it does not exist. */
  remove(id: string, options?: { keepalive?: boolean }): Promise<void>;
}
