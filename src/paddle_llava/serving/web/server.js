// What the page asks of the server: OpenAI's API, and pictures to try. Addresses are relative, so that the
// page works under any path of a proxy.
import { word } from "./words.js";

/** A failed request, in the words for a person; `needsKey` when a key would help. */
export class ServerError extends Error {
  constructor(message, needsKey = false) {
    super(message);
    this.needsKey = needsKey;
  }
}

async function request(path, { key, body, signal } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(word("unreachable"));
  }
  if (response.ok) return response;
  if (response.status === 401) throw new ServerError(word("needsKey"), true);
  if (response.status === 429) throw new ServerError(word("busy", response.headers.get("Retry-After") || 5));
  const told = await response.json().catch(() => null);
  throw new ServerError(told?.error?.message || word("failed", response.status));
}

/** The name of the model that answers. */
export async function modelName(key) {
  return (await (await request("v1/models", { key })).json()).data[0].id;
}

/** Pictures to try: `{ name, questions: { en, zh } }`. */
export async function samples() {
  return (await request("samples")).json();
}

/** One of them, as a blob. */
export async function sample(name) {
  return (await request(samplePath(name))).blob();
}

export function samplePath(name) {
  return `samples/${encodeURIComponent(name)}`;
}

/**
 * An answer as it comes: yields `{ text }` pieces, and at last `{ reason, boxes, usage }`, the boxes in pixels of the
 * picture that was shown last: [[x1, y1, x2, y2], ...]. Throws `ServerError`, or what `signal` aborts with.
 */
export async function* answer(body, { key, signal }) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { key, signal, body: streamed });
  let reason = null;
  let boxes = [];
  let usage = null;
  let ended = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message || word("broken"));
    const [choice] = chunk.choices ?? [];
    reason = choice?.finish_reason ?? reason;
    boxes = choice?.delta?.boxes ?? boxes;
    usage = chunk.usage ?? usage;
    if (choice?.delta?.content) yield { text: choice.delta.content };
  }
  if (!ended && !reason) throw new ServerError(word("broken"));
  yield { reason, boxes, usage };
}

/** The data of each event of a text/event-stream (WHATWG HTML, 9.2.6); its other fields have no use here. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  let lines = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (pending + value).split(/\r\n|\n|\r(?!$)/);
      pending = parts.pop();
      for (const line of parts) {
        if (line.startsWith("data:")) lines.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && lines.length) {
          yield lines.join("\n");
          lines = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(word("broken"));
  } finally {
    reader.cancel().catch(() => {});
  }
}
