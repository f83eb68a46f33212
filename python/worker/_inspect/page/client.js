// Requests to the inspector: the key, the errors, and the stream of server-sent events.

const KEY = "sanic-worker inspector key";

const heldKey = () => sessionStorage.getItem(KEY);

class KeyRefused extends Error {}

class Refused extends Error {}

class Unreachable extends Error {
  message = "the inspector cannot be reached";
}

function unreachable() {
  throw new Unreachable();
}

// A header holds bytes; fetch() takes each of them as one character.
function headerValue(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

// Addresses are relative, so that a proxy may serve the page below a path of its own.
async function request(path, { method = "GET", data, headers = {}, signal, key = heldKey() } = {}) {
  const all = { Accept: "application/json", ...headers };
  if (key !== null) all.Authorization = `Bearer ${headerValue(key)}`;
  if (data !== undefined) all["Content-Type"] = "application/json";
  const body = data === undefined ? undefined : JSON.stringify(data);
  const options = { method, body, headers: all, signal, cache: "no-store" };
  const response = await fetch(path, options).catch(unreachable);
  if (response.ok) return response;
  const reason = await refusal(response);
  throw response.status === 401 ? new KeyRefused(reason) : new Refused(reason);
}

async function result(path, options) {
  return (await (await request(path, options)).json()).result;
}

// The inspector's own words, where there are any.
async function refusal(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).message || `HTTP status ${response.status}`;
  } catch {
    return `HTTP status ${response.status}`;
  }
}

// EventSource cannot send the key, so the stream is read here.
async function* streamed(path, signal) {
  const response = await request(path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read().catch(unreachable);
    if (done) return;
    const blocks = (pending + value).split(/\r?\n\r?\n/);
    pending = blocks.pop();
    for (const block of blocks) {
      const message = parsed(block);
      if (message.data) yield { type: message.event, data: JSON.parse(message.data) };
    }
  }
}

function parsed(block) {
  const message = { event: "message", data: "" };
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^(event|data): ?(.*)$/.exec(line) ?? [];
    if (field === "event") message.event = value;
    if (field === "data") message.data += (message.data && "\n") + value;
  }
  return message;
}
