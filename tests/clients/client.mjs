// Uploads a photo with a client of Node for each line of standard input: client, url, token, category, file, filename,
// separated by tabs; the category "-" is none. Prints a line for each: client, version, status (0: no answer), body or error.
import { createReadStream, readFileSync, statSync } from "node:fs";
import http from "node:http";
import { createInterface } from "node:readline";
import axios from "axios";
import NodeForm from "form-data";
import * as undici from "undici";

const versionOf = (name) => JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;

function webForm(Form, { category, file, filename }) {
  const form = new Form();
  if (category !== "-") form.append("category", category);
  form.append("image", new Blob([readFileSync(file)], { type: "image/png" }), filename);
  return form;
}

function nodeForm({ category, file, filename }) {
  const form = new NodeForm();
  if (category !== "-") form.append("category", category);
  form.append("image", createReadStream(file), { filename, contentType: "image/png", knownLength: statSync(file).size });
  return form;
}

const read = async (reply) => [reply.status, await reply.text()];
const withAxios = async (upload, body) => {
  const config = { headers: upload.headers, validateStatus: () => true, transformResponse: (text) => text, proxy: false };
  const reply = await axios.post(upload.url, body, { ...config, maxBodyLength: Infinity });
  return [reply.status, reply.data];
};

const CLIENTS = {
  "node fetch": [process.version, async (upload) => read(await fetch(upload.url, { method: "POST", headers: upload.headers, body: webForm(FormData, upload) }))],
  undici: [versionOf("undici"), async (upload) => {
    const { statusCode, body } = await undici.request(upload.url, { method: "POST", headers: upload.headers, body: webForm(undici.FormData, upload) });
    return [statusCode, await body.text()];
  }],
  axios: [versionOf("axios"), (upload) => withAxios(upload, webForm(FormData, upload))],
  "axios with form-data": [versionOf("form-data"), (upload) => withAxios(upload, nodeForm(upload))],
  "form-data over http, chunked": [versionOf("form-data"), (upload) => new Promise((resolve, reject) => {
    const form = nodeForm(upload);
    const request = http.request(upload.url, { method: "POST", headers: { ...upload.headers, ...form.getHeaders() } });
    request.on("error", reject).on("response", (reply) => {
      const pieces = [];
      reply.on("data", (piece) => pieces.push(piece)).on("end", () => resolve([reply.statusCode, Buffer.concat(pieces).toString()]));
    });
    form.pipe(request);
  })],
};

for await (const line of createInterface({ input: process.stdin })) {
  const [client, url, token, category, file, filename] = line.split("\t");
  const [version, send] = CLIENTS[client];
  const upload = { url, category, file, filename, headers: { Authorization: `Bearer ${token}` } };
  const [status, body] = await send(upload).catch((error) => [0, `${error} ${error.cause ?? ""}`.replaceAll("\n", " ")]);
  console.log([client, version, status, body].join("\t"));
}
