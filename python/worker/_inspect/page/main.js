// The connection: it is found again after a loss, rests while the tab is hidden, and asks for the key.

const INTERVAL = 1;
const SILENCE = 10;
const FIRST_RETRY = 0.5, LAST_RETRY = 10;

let abort = new AbortController();
let wake = () => {};
let last = null;

function showConnection(state, text, details = "") {
  element("connection").dataset.state = state;
  document.body.classList.toggle("stale", state !== "live");
  setText(element("connection"), text + details);
  // While it is live, the title has the number of ready workers.
  if (state !== "live") document.title = `${text} \u00b7 ${element("app").textContent}`;
  showControls();
}

function showStatus(status) {
  if (last && last.server.pid !== status.server.pid) {
    last = null;
    forgetActivity();
  }
  const seconds = last ? (Date.parse(status.time) - Date.parse(last.time)) / 1000 : 0;
  if (!last || seconds > 0) {
    remember(status.workers, last ? last.workers : [], seconds);
    last = status;
  }
  showServer(status);
  showWorkers(status.workers);
  learnOperations(status.operations);
}

function showEvent(event) {
  learnEvents([event]);
  announceEvent(event);
  // A request that fails now is a lost connection, which the stream notices.
  if (event.type === "operation_ended") refreshOperations(true).catch(() => {});
}

async function refreshOperations(areNews) {
  learnOperations((await result("operations")).operations, areNews);
}

async function refreshActivity() {
  await refreshOperations(false);
  learnEvents((await result(`events?limit=${MAX_EVENTS}`)).events);
}

// Show the stream until it ends. A connection can be lost without a word: silence is a loss, too.
async function follow(connected) {
  abort = new AbortController();
  const { signal } = abort;
  let watchdog = 0;
  const awaitMessage = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => abort.abort(new Error(`no message for ${SILENCE} s`)), SILENCE * 1000);
  };
  awaitMessage();
  try {
    let isFirst = true;
    for await (const { type, data } of streamed(`status?interval=${INTERVAL}`, signal)) {
      awaitMessage();
      if (type === "status") showStatus(data);
      if (type === "event") showEvent(data);
      if (isFirst) {
        isFirst = false;
        connected();
        await refreshActivity();
      }
    }
  } catch (error) {
    throw signal.aborted ? signal.reason : error;
  } finally {
    clearTimeout(watchdog);
  }
}

async function pause(seconds) {
  await new Promise((over) => {
    wake = over;
    setTimeout(over, seconds * 1000);
  });
}

async function watch() {
  let delayed = FIRST_RETRY;
  showConnection("waiting", "Connecting");
  for (;;) {
    if (document.hidden) {
      showConnection("waiting", "Paused");
      await new Promise((shown) => { wake = shown; });
      continue;
    }
    let reason = "";
    try {
      await follow(() => {
        delayed = FIRST_RETRY;
        showConnection("live", "Live");
      });
    } catch (error) {
      if (error instanceof KeyRefused) {
        await askForKey(error.message);
        continue;
      }
      if (error instanceof Unreachable) concludeStops();
      else reason = `: ${error.message}`;
    }
    if (document.hidden) continue;
    showConnection("lost", "Connection lost", `${reason}. Trying again`);
    await pause(delayed);
    delayed = Math.min(2 * delayed, LAST_RETRY);
  }
}

// Ask until a key is accepted. Only then is it kept.
async function askForKey(reason) {
  const dialog = element("key-dialog"), input = element("key"), complaint = element("key-error");
  showConnection("waiting", "Waiting for the key");
  const refused = (message) => `The key was refused: ${message}`;
  setText(complaint, heldKey() === null ? "" : refused(reason));
  input.value = "";
  // A second Escape closes any dialog.
  dialog.onclose = () => dialog.showModal();
  dialog.showModal();
  await new Promise((accepted) => {
    dialog.querySelector("form").onsubmit = async (event) => {
      event.preventDefault();
      setText(complaint, "");
      try {
        await request("status", { key: input.value });
        sessionStorage.setItem(KEY, input.value);
        accepted();
      } catch (error) {
        const { message } = error;
        setText(complaint, error instanceof Unreachable ? `Try again: ${message}` : refused(message));
        input.select();
      }
    };
  });
  input.value = "";
  dialog.onclose = null;
  dialog.close();
}

element("key-dialog").addEventListener("cancel", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) abort.abort();
  wake();
});
addEventListener("online", () => wake());
watch();
