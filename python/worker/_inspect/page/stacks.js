// The stacks of one process, in a dialog.

const WAYS = {
  interpreter: "as its interpreter tells",
  faulthandler: "as faulthandler tells: C code holds the GIL",
  kernel: "as the kernel tells: the process answers no questions",
};

// An answer to a request before the last one is not shown.
let lastRequest = 0;

function showAnswer(about, text) {
  setText(element("stacks-about"), about);
  setText(element("stacks-text"), text);
  element("stacks-text").hidden = !text;
  element("stacks-copy").setAttribute("aria-disabled", String(!text));
}

async function showStacks(name) {
  const request = ++lastRequest, dialog = element("stacks-dialog");
  setText(element("stacks-heading"), `Stacks of ${isolated(name)}`);
  showAnswer("Asking the process", "");
  dialog.showModal();
  let about = "", text = "";
  try {
    const answer = await result("stacks", { method: "POST", data: { name } });
    const debug = answer.debugger ? [`a debugger is at work in it: ${answer.debugger}`] : [];
    about = [`pid ${answer.pid}`, WAYS[answer.way] ?? answer.way, ...debug].join(" \u00b7 ");
    text = answer.text;
  } catch (error) {
    about = error.message;
  }
  if (request === lastRequest) showAnswer(about, text);
}

// Without HTTPS, and not on this machine, a page has no `navigator.clipboard`.
async function copyStacks() {
  const node = element("stacks-text");
  getSelection().selectAllChildren(node);
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(node.textContent);
    else if (!document.execCommand("copy")) throw new Error("the browser refuses it");
    setText(element("stacks-about"), "Copied");
  } catch (error) {
    setText(element("stacks-about"), `Not copied: ${error.message}. The text is selected`);
  }
}

element("stacks-copy").addEventListener("click", copyStacks);
element("stacks-dialog").addEventListener("close", () => { lastRequest += 1; });
document.querySelector("main").addEventListener("click", (event) => {
  const name = event.target.closest(".stacks")?.dataset.name;
  if (name !== undefined) showStacks(name);
});
