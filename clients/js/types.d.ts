/**
 * The contracts as types: what the service replies (contracts/analyze-queue.openapi.json) and the frames it sends
 * (contracts/rooms.asyncapi.json). A test compares each with them.
 */

export type AssetStatus = "draft" | "processing" | "partial" | "active" | "archived" | "failed";
export type AttributeName = "brand" | "model" | "colorway";
export type ErrorCode =
  | "VALIDATION_ERROR"
  | "UNAUTHORIZED"
  | "FORBIDDEN"
  | "NOT_FOUND"
  | "METHOD_NOT_ALLOWED"
  | "CONFLICT"
  | "RATE_LIMITED"
  | "INTERNAL_ERROR"
  | "UNAVAILABLE";

export interface ErrorDetail {
  field: string;
  message: string;
}

/** confidence: 0 to 1 */
export interface Attribute {
  value: string;
  confidence: number;
}

export interface Receipt {
  assetId: string;
  jobId: string;
  status: "processing";
  message: "Asset queued for AI analysis";
  asset?: Asset;
}

/** url: the present address of the image; null while its storage cannot give one. */
export interface OriginalImage {
  url: string | null;
  bytes: number;
  width: number;
  height: number;
  contentType: "image/jpeg" | "image/png" | "image/webp" | "image/gif" | "image/avif" | "image/heic";
}

export interface Preview {
  url: string | null;
  width: number;
  height: number;
}

export interface AssetImages {
  original: OriginalImage;
  processed: { url: string | null } | null;
  previews: { 320?: Preview; 1280?: Preview } | null;
}

export interface AssetAiMetadata {
  brand: Attribute | null;
  model: Attribute | null;
  colorway: Attribute | null;
  processedAt: string | null;
  /** Why it failed, for people. */
  error: string | null;
  /** What an AI service had to say beyond brand, model and colorway. */
  extra: Record<string, unknown>;
}

export interface Correction {
  value: string;
  by: string;
  at: string;
}

export interface Attempt {
  attempt: number;
  startedAt: string;
  endedAt: string;
  provider: string | null;
  model: string | null;
  outcome: "completed" | "failed";
  reason: string | null;
}

export interface Usage {
  inputTokens: number | null;
  outputTokens: number | null;
  cost: number | null;
  currency: string;
}

export interface Provenance {
  provider: string | null;
  model: string | null;
  promptVersion: string | null;
  confidenceKind: "measured" | "self_reported" | "none" | null;
  usage: Usage | null;
  cached?: boolean;
}

export interface Progress {
  state: "queued" | "running" | "retrying" | "held";
  position: number | null;
  etaSeconds: number | null;
  attempt: number | null;
  provider: string | null;
  reason: string | null;
  nextAt: string | null;
  share: number | null;
}

export interface Asset {
  id: string;
  userId: string;
  /** One of those that the service took when the photo was uploaded. */
  category: string;
  status: AssetStatus;
  images: AssetImages;
  aiMetadata: AssetAiMetadata;
  corrections: { brand?: Correction; model?: Correction; colorway?: Correction };
  attempts: Attempt[];
  provenance: Provenance | null;
  progress: Progress | null;
  processingJobId: string;
  createdAt: string;
  updatedAt: string;
  finishedAt: string | null;
}

export interface AssetPage {
  items: Asset[];
  nextCursor: string | null;
  serverTime: string;
}

/** What the list is asked for. */
export interface AssetQuery {
  status?: AssetStatus | null;
  category?: string | null;
  limit?: number | null;
  cursor?: string | null;
  finishedSince?: string | null;
}

// frames

/** The work on a photo has ended with a result; a brand or model that is not known has the value "". */
export interface AssetProcessedSuccess {
  event: "asset_processed";
  assetId: string;
  status: "active" | "partial";
  aiMetadata: { brand: Attribute; model: Attribute; colorway?: Attribute };
  processedImageUrl?: string;
  /** The asset's finishedAt. */
  timestamp: string;
}

/** The work on a photo has ended without one. error: why, for people. */
export interface AssetProcessedFailure {
  event: "asset_processed";
  assetId: string;
  status: "failed";
  error: string;
  timestamp: string;
}

export type AssetProcessed = AssetProcessedSuccess | AssetProcessedFailure;

export interface Connected {
  event: "connected";
  room: string;
  serverTime: string;
}

export interface AssetQueued {
  event: "asset_queued";
  assetId: string;
  position: number | null;
  etaSeconds: number | null;
}

export interface AssetStarted {
  event: "asset_started";
  assetId: string;
  attempt: number;
  provider: string | null;
}

export interface AssetRetrying {
  event: "asset_retrying";
  assetId: string;
  attempt: number;
  reason: string | null;
  nextAt: string | null;
}

export interface AssetHeld {
  event: "asset_held";
  assetId: string;
  reason: string | null;
  nextAt: string | null;
}

export interface AssetProgress {
  event: "asset_progress";
  assetId: string;
  share: number | null;
  partial?: { brand?: Attribute; model?: Attribute; colorway?: Attribute };
}

export interface AssetCorrected {
  event: "asset_corrected";
  assetId: string;
  status: "processing" | "partial" | "active" | "failed";
  aiMetadata: { brand: Attribute | null; model: Attribute | null; colorway: Attribute | null };
  fields: AttributeName[];
}

export interface AssetDeleted {
  event: "asset_deleted";
  assetId: string;
}

export type QueueName = "ai-processing" | "notifications";

export interface Hold {
  provider: string;
  reason: string;
  cause: string;
  nextTryInSeconds: number;
}

export interface QueueNumbers {
  name: QueueName;
  waiting: number;
  delayed: number;
  active: number;
  completed: number;
  failed: number;
  paused: boolean;
  oldestReadySeconds: number | null;
  endedInLastMinute: number;
  holds: Hold[];
}

/** Why nothing is known of a queue. */
export interface QueueUnknown {
  name: QueueName;
  error: string;
}

/** How the whole service is. */
export interface OverviewChanged {
  event: "overview";
  serverTime: string;
  version: string;
  queues: (QueueNumbers | QueueUnknown)[];
  workersAlive: number | null;
  processesAlive: number | null;
  slots: { used: number | null; all: number | null };
  plugins: { quarantined: string[] };
  redis: {
    isUp: boolean;
    isEmbedded: boolean;
    version: string | null;
    role: "master" | "replica" | null;
    usedBytes: number | null;
    maxBytes: number | null;
    evictionPolicy: string | null;
    isEvictionSafe: boolean | null;
    persistence: "aof" | "snapshots" | null;
    error: string | null;
  };
  store: { kind: "sqlite" | "mongodb"; isUp: boolean; tookMs: number; error: string | null };
  storage: { name: string; isUp: boolean; error: string | null };
  tasks: string[];
  grafanaUrl: string | null;
}

/** The frames that listeners of the client get. */
export interface Frames {
  asset_processed: AssetProcessed;
  /** These with `progress: true`. */
  asset_queued: AssetQueued;
  asset_started: AssetStarted;
  asset_retrying: AssetRetrying;
  asset_held: AssetHeld;
  asset_progress: AssetProgress;
  asset_corrected: AssetCorrected;
  asset_deleted: AssetDeleted;
  /** With `operators: true` and the token of an operator. */
  overview: OverviewChanged;
}
