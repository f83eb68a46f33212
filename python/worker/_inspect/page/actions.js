// The buttons: each sends an action and follows its operation to the end.

const HOLD = 30;
// An inspector that stops answers at once.
const ASK_AGAIN = 1;

function notify(text) {
  const notice = element("notice");
  notice.hidden = !text;
  setText(notice, text);
}

async function act(name, action, data) {
  notify("");
  try {
    const options = { method: "POST", data, headers: { Prefer: "respond-async" } };
    const operation = await result(action, options);
    // An inspector whose application has replaced the action may answer with anything.
    if (operation?.id) await followOperation(operation);
    else notify(`${name}: sent. The answer names no operation, so the outcome is not known`);
  } catch (error) {
    notify(`${name}: ${error.message}`);
  }
}

async function followOperation(operation) {
  learnOperations([operation]);
  while (!hasEnded(operation)) {
    try {
      operation = await result(`operations/${encodeURIComponent(operation.id)}?wait=${HOLD}`);
    } catch (error) {
      // The connection is lost, or the server has ended. The page learns of the outcome when it is back.
      if (error instanceof Unreachable) return;
      throw error;
    }
    learnOperations([operation]);
    if (!hasEnded(operation)) await new Promise((over) => { setTimeout(over, ASK_AGAIN * 1000); });
  }
}

async function isConfirmed(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  return dialog.returnValue === "yes";
}

async function stop() {
  if (await isConfirmed(element("stop-dialog"))) await act("Stop", "shutdown");
}

function scale(replicas) {
  return act("Scale", "scale", { replicas });
}

// A missing digit must not end most of the workers.
async function scaleToTyped() {
  const typed = Number(element("replicas").value), wanted = last.server.workers_wanted;
  if (typed < wanted) {
    setText(element("scale-heading"), `Scale down from ${wanted} to ${typed}?`);
    setText(element("scale-text"), `${counted(wanted - typed, "worker")} will end.`);
    if (!await isConfirmed(element("scale-dialog"))) return;
  }
  isNumberTyped = false;
  await scale(typed);
}

// Enter in the field presses the button, too.
document.addEventListener("click", (event) => {
  if (!event.target.closest?.("[aria-disabled=true]")) return;
  event.preventDefault();
  event.stopPropagation();
}, { capture: true });
element("roll").addEventListener("click", () => act("Rolling restart", "reload", { zero_downtime: true }));
element("upgrade").addEventListener("click", () => act("Upgrade", "upgrade"));
element("stop").addEventListener("click", stop);
element("fewer").addEventListener("click", () => scale("-1"));
element("more").addEventListener("click", () => scale("+1"));
element("replicas").addEventListener("input", () => { isNumberTyped = true; });
element("replicas").addEventListener("keydown", (event) => {
  if (event.key === "Escape") showNumber(last?.server.workers_wanted ?? "");
});
element("scale").addEventListener("submit", (event) => {
  event.preventDefault();
  scaleToTyped();
});
element("workers").addEventListener("click", (event) => {
  const name = event.target.closest(".restart")?.dataset.name;
  if (name !== undefined) act(`Restart of ${isolated(name)}`, "restart", { names: [name], zero_downtime: true });
});
