/** An app that uses every part of the package; then the lines that must not compile. */
import {
  PipelineClient,
  PipelineError,
  type Asset,
  type AssetProcessed,
  type Events,
  type TransportName,
} from "ai-queue-pipeline-client";
import { PhotoQueue, type PhotoAccepted } from "ai-queue-pipeline-client/photo-queue.js";

const client = new PipelineClient({
  url: "https://photos.example.com",
  token: async () => "a token",
  since: "2026-01-31T12:00:00.000Z",
  progress: true,
  operators: true,
  times: { connectMs: 1000 },
  fetch: globalThis.fetch,
  WebSocket: globalThis.WebSocket,
});

export function shown(event: AssetProcessed): string {
  switch (event.status) {
    case "failed":
      return event.error;
    case "active":
    case "partial":
      return event.aiMetadata.colorway?.value ?? event.aiMetadata.brand.value;
  }
}

const end: () => void = client.on("asset_processed", (event) => shown(event));
client.on("connected", ({ room, serverTime }) => console.log(room.length, serverTime.length));
client.on("disconnected", ({ code, willReconnect, retryInMs }) => [code.toFixed(), !willReconnect, retryInMs ?? 0]);
client.on("transport", ({ transport }: { transport: TransportName }) => transport);
client.on("error", (error) => error instanceof PipelineError && error.code === "ORIGIN_NOT_ALLOWED");
client.on("asset_queued", ({ position, etaSeconds }) => (position ?? 0) + (etaSeconds ?? 0));
client.on("asset_started", ({ attempt, provider }) => `${attempt} ${provider?.trim()}`);
client.on("asset_retrying", ({ attempt, reason, nextAt }) => [attempt, reason?.trim(), nextAt?.trim()]);
client.on("asset_held", ({ reason, nextAt }) => [reason?.trim(), nextAt?.trim()]);
client.on("asset_progress", ({ share, partial }) => [share ?? 0, partial?.brand?.value]);
client.on("asset_corrected", ({ status, fields, aiMetadata }) => [status, fields[0], aiMetadata.model?.confidence]);
client.on("asset_deleted", ({ assetId }) => assetId.trim());
client.on("overview", ({ queues, redis }) => [redis.isUp, ...queues.map((each) => ("error" in each ? each.error : each.waiting))]);
const listen = <Name extends keyof Events>(name: Name, listener: (detail: Events[Name]) => void) => client.on(name, listener);
listen("connected", ({ room }) => room);

export async function all(file: Blob, signal: AbortSignal): Promise<Asset> {
  const room: string = await client.connect();
  const onProgress = (sent: number, total: number) => console.log(room, sent / total);
  const receipt = await client.upload(file, { category: "lego", idempotencyKey: "k", onProgress, signal, tries: 2 });
  const page = await client.assets({ status: "active", limit: 10, cursor: null, finishedSince: client.since });
  await client.correct(receipt.assetId, { brand: "Adidas", model: null });
  await client.retry(receipt.assetId);
  await client.cancel(receipt.assetId);
  await client.remove(receipt.assetId, { keepalive: true });
  const name: TransportName | null = client.transport;
  console.log(name, page.serverTime, page.nextCursor, page.items[0]?.images.previews?.[320]?.url);
  end();
  client.close();
  return client.asset(receipt.assetId);
}

const queue = document.querySelector("photo-queue");
if (queue) {
  queue.token = "a token";
  queue.token = () => "a token";
  queue.url = "https://photos.example.com";
  queue.category = "lego";
  queue.addEventListener("photo-finished", ({ detail }) => shown(detail));
  queue.addEventListener("photo-accepted", ({ detail }: CustomEvent<PhotoAccepted>) => detail.name);
  queue.addEventListener("photo-unauthorized", () => queue.clear());
  queue.addEventListener("click", ({ clientX }) => clientX);
  void queue.add([new File([], "photo.jpg")]);
  console.log(queue.unsent, queue instanceof PhotoQueue);
}

// @ts-expect-error no token
new PipelineClient({ url: "https://photos.example.com" });
// @ts-expect-error a token is no number
new PipelineClient({ url: "https://photos.example.com", token: 1 });
// @ts-expect-error no such event
client.on("asset_proccessed", () => {});
// @ts-expect-error a failure has no result
client.on("asset_processed", (event) => event.aiMetadata.brand);
// @ts-expect-error `connected` has no code
client.on("connected", ({ code }) => code);
// @ts-expect-error no category
void client.upload(new Blob(), {});
// @ts-expect-error no such status
void client.assets({ status: "done" });
// @ts-expect-error no such field
void client.correct("id", { colour: "red" });
// @ts-expect-error read only
client.since = "now";
// @ts-expect-error the position may be unknown
client.on("asset_queued", ({ position }) => position.toFixed());
// @ts-expect-error no such member
queue?.addEventListener("photo-finished", ({ detail }) => detail.userId);
