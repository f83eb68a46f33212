// The operations, the events, and the announcements of both to screen readers.

const MAX_EVENTS = 200;
const MAX_OPERATIONS = 200;
const MAX_ENDED = 3;
const MAX_ANNOUNCED = 5;
const ANNOUNCED = new Set(["server_ready", "scaled", "stop_requested"]);
const TITLES = { restart: "Restart", reload: "Reload", scale: "Scale", shutdown: "Stop", upgrade: "Upgrade" };

const operations = new Map();
const events = new Map();

const hasEnded = (operation) => operation.status === "done" || operation.status === "failed";

// Texts that come together are all read, one after another.
function announce(text) {
  const line = document.createElement("p");
  setText(line, text);
  element("announcer").append(line);
  while (element("announcer").children.length > MAX_ANNOUNCED) element("announcer").firstChild.remove();
}

// An ended operation stays ended: an older answer about it may come later. Outcomes are announced, but not
// those from before the page was opened.
function learnOperations(found, areNews = true) {
  for (const operation of found) {
    const held = operations.get(operation.id);
    if (held && hasEnded(held)) continue;
    operations.set(operation.id, operation);
    if ((held || areNews) && hasEnded(operation)) announce(`${title(operation)}: ${outcome(operation)}`);
  }
  showOperations();
}

// A server that cannot be reached after a stop was requested has stopped. If it answers after all, its own
// account of the operation replaces this one.
function concludeStops() {
  for (const operation of operations.values()) {
    if (operation.kind !== "shutdown" || operation.status === "stopped" || hasEnded(operation)) continue;
    operation.status = "stopped";
    announce(outcome(operation));
  }
  showOperations();
}

function showOperations() {
  const newest = [...operations.values()].sort((a, b) => (a.requested_at < b.requested_at ? 1 : -1));
  for (const { id } of newest.splice(MAX_OPERATIONS)) operations.delete(id);
  const ended = newest.filter(hasEnded).slice(0, MAX_ENDED);
  const shown = [...newest.filter((operation) => !hasEnded(operation)), ...ended];
  element("operations-section").hidden = shown.length === 0;
  reconcile(element("operations"), shown, (operation) => operation.id,
    () => fromTemplate("operation-template"), showOperation);
}

function showOperation(item, operation) {
  item.dataset.status = operation.status;
  setText(item.querySelector(".kind"), title(operation));
  setText(item.querySelector(".by"), `${clock(operation.requested_at)} by ${operation.by}`);
  setText(item.querySelector(".outcome"), outcome(operation));
  const bar = item.querySelector("progress");
  bar.setAttribute("aria-label", title(operation));
  bar.hidden = hasEnded(operation) || operation.status === "stopped";
  if (operation.total > 0) {
    bar.max = operation.total;
    bar.value = operation.done;
  } else {
    bar.removeAttribute("value");
  }
}

function title(operation) {
  return TITLES[operation.kind] ?? operation.kind;
}

function outcome(operation) {
  const text = operation.text || "";
  if (operation.status === "done") {
    return [`Done in ${delay(operation.seconds)}`, text].filter(Boolean).join(": ");
  }
  if (operation.status === "failed") {
    const parts = [`Failed after ${delay(operation.seconds)}: ${operation.reason || text}`];
    const back = operation.rolled_back ?? [];
    if (back.length) parts.push(`The previous process serves on: ${back.join(", ")}`);
    return parts.join(". ");
  }
  if (operation.status === "stopped") return "The server has stopped";
  return operation.status === "pending" ? "Pending" : `Running${text && ": "}${text}`;
}

function learnEvents(found) {
  for (const event of found) events.set(event.seq, event);
  const newest = [...events.values()].sort((a, b) => b.seq - a.seq).slice(0, MAX_EVENTS);
  events.clear();
  for (const event of newest) events.set(event.seq, event);
  reconcile(element("events"), newest, (event) => event.seq, newEvent, () => {});
}

function newEvent(event) {
  const item = fromTemplate("event-template");
  item.dataset.level = event.level;
  const time = item.querySelector("time");
  time.dateTime = event.time;
  setText(time, clock(event.time));
  setText(item.querySelector(".level"), event.level);
  setText(item.querySelector(".text"), event.text);
  return item;
}

// The outcome of an operation is announced by itself.
function announceEvent(event) {
  const isImportant = ["warning", "error", "critical"].includes(event.level) || ANNOUNCED.has(event.type);
  if (isImportant && event.type !== "operation_ended") announce(event.text);
}

function forgetActivity() {
  operations.clear();
  events.clear();
  histories.clear();
  element("events").replaceChildren();
}
