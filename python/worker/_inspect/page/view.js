// The server's figures and the tiles of its workers. Everything from outside is set as text, never as HTML.

// With more workers than this, the tiles show less of each.
const MAX_FULL_TILES = 12;
const SHORT_NAME = /^Sanic-Server-(?=.)/;

// A typed number of workers stays in its field until it is sent or given up.
let isNumberTyped = false;

const element = (id) => document.getElementById(id);

function fromTemplate(id) {
  return element(id).content.firstElementChild.cloneNode(true);
}

// An unchanged text is not touched: a selection in it stays, and screen readers are not disturbed.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Make the children of a list those of `items`, in this order. An item keeps its element by its key.
function reconcile(list, items, key, make, update) {
  const present = new Map([...list.children].map((child) => [child.itemKey, child]));
  items.forEach((item, index) => {
    const itemKey = key(item);
    let child = present.get(itemKey);
    if (child) present.delete(itemKey);
    else {
      child = make(item);
      child.itemKey = itemKey;
    }
    update(child, item);
    if (list.children[index] !== child) list.insertBefore(child, list.children[index] ?? null);
  });
  for (const child of present.values()) child.remove();
}

function showServer(status) {
  const { server, workers } = status;
  const servers = workers.filter((worker) => worker.server);
  const ready = count(server.workers_ready), wanted = count(server.workers_wanted);
  setText(element("app"), server.app ?? "sanic-worker");
  setText(element("about"), [
    `Sanic ${server.sanic}`, `sanic-worker ${server.version}`, `${server.core} core`, `pid ${server.pid}`,
    `up ${duration(server.uptime)}`,
  ].join(" \u00b7 "));
  document.title = `${ready}/${wanted} ready \u00b7 ${server.app ?? "sanic-worker"}`;
  const isShort = server.workers_ready < server.workers_wanted;
  const figures = [
    ["Workers ready", `${ready} of ${wanted}`, isShort ? "short" : ""],
    ["Requests/s", count(total(servers, (worker) => latest(worker.name).rate))],
    ["In flight", count(total(servers, (worker) => worker.in_flight))],
    ["Connections", count(total(servers, (worker) => worker.connections))],
    ["CPU", percent(total(workers, (worker) => latest(worker.name).cpu))],
    ["Memory", bytes(total(workers, (worker) => worker.pss_bytes ?? worker.rss_bytes))],
    ["Restarts", count(server.restarts)],
    ["Backlog", count(server.backlog)],
    ["State memory", `${bytes(server.state_bytes)} of ${bytes(server.state_max_bytes)}`],
  ];
  reconcile(element("summary"), figures, ([label]) => label, () => fromTemplate("total-template"),
    (item, [label, value, mark]) => {
      setText(item.querySelector("dt"), label);
      setText(item.querySelector("dd"), value);
      item.dataset.mark = mark ?? "";
    });
  if (!isNumberTyped) showNumber(server.workers_wanted ?? "");
}

// A button without an effect keeps the focus, which the attribute `disabled` would take from it.
function showControls() {
  const isLive = element("connection").dataset.state === "live";
  for (const button of document.querySelectorAll("header button, .restart, .stacks")) {
    const isAtEnd = button.id === "fewer" && last?.server.workers_wanted <= 1;
    button.setAttribute("aria-disabled", String(!isLive || isAtEnd));
  }
}

function showNumber(wanted) {
  isNumberTyped = false;
  if (element("replicas").value !== String(wanted)) element("replicas").value = wanted;
}

function showWorkers(workers) {
  const servers = workers.filter((worker) => worker.server);
  const others = workers.filter((worker) => !worker.server);
  const highest = scales(servers);
  const isCompact = servers.length > MAX_FULL_TILES;
  element("workers").classList.toggle("compact", isCompact);
  element("legend").hidden = !isCompact;
  reconcile(element("workers"), servers, (worker) => worker.name, newTile,
    (tile, worker) => showTile(tile, worker, highest, isCompact));
  element("others-section").hidden = others.length === 0;
  reconcile(element("others"), others, (worker) => worker.name, newOther, showOther);
  showControls();
}

function newTile(worker) {
  const tile = fromTemplate("tile-template");
  tile.setAttribute("aria-label", worker.name);
  const restart = tile.querySelector(".restart");
  restart.setAttribute("aria-label", `Restart ${worker.name}`);
  restart.title = `Restart ${worker.name}`;
  restart.dataset.name = worker.name;
  nameStacks(tile, worker);
  for (const { id, label } of MEASURES) {
    const meter = fromTemplate("meter-template");
    meter.dataset.measure = id;
    setText(meter.querySelector("dt"), label);
    tile.querySelector(".meters").append(meter);
  }
  return tile;
}

function newOther(worker) {
  const item = fromTemplate("other-template");
  nameStacks(item, worker);
  return item;
}

function nameStacks(item, worker) {
  const button = item.querySelector(".stacks");
  button.setAttribute("aria-label", `Stacks of ${worker.name}`);
  button.title = `Stacks of ${worker.name}: what it is doing now`;
  button.dataset.name = worker.name;
}

function showTile(tile, worker, highest, isCompact) {
  const name = tile.querySelector(".name");
  setText(name, isCompact ? worker.name.replace(SHORT_NAME, "") : worker.name);
  name.title = worker.name;
  showPhase(tile, worker);
  setText(tile.querySelector(".facts"), facts(worker).join(" \u00b7 "));
  setText(tile.querySelector(".why"), worker.why ?? "");
  tile.title = [...(isCompact ? facts(worker) : []), worker.why].filter(Boolean).join("\n");
  for (const meter of tile.querySelectorAll(".meter")) {
    const { id, show } = MEASURES.find((measure) => measure.id === meter.dataset.measure);
    setText(meter.querySelector("dd"), show(latest(worker.name)[id]));
    const { line, area } = sparkline(worker.name, id, highest[id]);
    meter.querySelector(".line").setAttribute("d", line);
    meter.querySelector(".area").setAttribute("d", area);
  }
}

function showOther(item, worker) {
  const { cpu, rss } = latest(worker.name);
  setText(item.querySelector(".name"), worker.name);
  showPhase(item, worker);
  setText(item.querySelector(".facts"),
    [...facts(worker), bytes(rss), `CPU ${percent(cpu)}`].join(" \u00b7 "));
  item.title = worker.why ?? "";
}

function showPhase(item, worker) {
  const phase = worker.phase ?? "unknown";
  item.dataset.phase = phase;
  setText(item.querySelector(".phase"), phase);
}

function facts(worker) {
  const restarts = worker.restarts === null ? [] : [counted(worker.restarts, "restart")];
  if (worker.pid !== null) return [`pid ${worker.pid}`, `up ${duration(worker.uptime)}`, ...restarts];
  const next = worker.next_restart_in;
  return ["no process", ...(next > 0 ? [`starts in ${duration(next)}`] : []), ...restarts];
}
