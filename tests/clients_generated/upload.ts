/**
 * A program that uses openapi-fetch and the types that openapi-typescript has generated: it uploads, lists and reads the stream.
 * Prints one JSON object. Usage: upload.ts URL TOKEN PHOTO
 */
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./photos";

type Upload = components["schemas"]["Upload"];
const [url = "", token = "", photo = ""] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${token}` } });

// OpenAPI has no Blob, so openapi-typescript declares the image as a string; the form needs the file itself.
const upload = (file: Blob, category: Upload["category"]) =>
  client.POST("/api/assets/analyze-queue", {
    body: { image: file as unknown as string, category },
    bodySerializer: (body) => {
      const form = new FormData();
      for (const [name, value] of Object.entries(body)) form.append(name, value);
      return form;
    },
  });

async function finished(stream: ReadableStream<Uint8Array>): Promise<{ assetId: string; status: string }> {
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true });
    const found = /event: ?asset_processed\r?\n(?:id:.*\r?\n)?data: ?(.*)\r?\n/.exec(text);
    if (found?.[1]) return JSON.parse(found[1]);
  }
  throw new Error("the stream ended");
}

const refused = await upload(new Blob(["no photo"]), "lego");
const events = await client.GET("/api/events", { parseAs: "stream" });
if (!events.data) throw new Error(events.error?.error.message);
const accepted = await upload(new Blob([await readFile(photo)]), "lego");
if (!accepted.data) throw new Error(accepted.error.error.message);
const streamed = await finished(events.data as ReadableStream<Uint8Array>);
const { data: list } = await client.GET("/api/assets", { params: { query: { status: "active" } } });
const { data: asset } = await client.GET("/api/assets/{id}", {
  params: { path: { id: accepted.data.data.assetId }, query: { wait: 20 } },
});
console.log(
  JSON.stringify({
    code: refused.error?.error.code,
    assetId: accepted.data.data.assetId,
    streamed: streamed.assetId,
    listed: list?.data.items.map(({ id }) => id),
    status: asset?.data.status,
    brand: asset?.data.aiMetadata.brand?.value,
  }),
);
process.exit(); // else the open stream keeps Node running

// Code that contradicts the contract does not compile.
// @ts-expect-error there is no such path
client.GET("/api/photos");
// @ts-expect-error there is no such category
upload(new Blob(), "car");
// @ts-expect-error there is no such status
client.GET("/api/assets", { params: { query: { status: "done" } } });
