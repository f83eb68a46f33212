// What the page remembers of each worker: the last minute of its measures, for the sparklines.

const SAMPLES = 60;

// `floor` is the least height of a sparkline's scale: without it, noise would fill the whole height.
const MEASURES = [
  { id: "rate", label: "Requests/s", floor: 5, show: count },
  { id: "in_flight", label: "In flight", floor: 4, show: count },
  { id: "lag", label: "Loop lag p99", floor: 0.01, show: delay },
  { id: "rss", label: "RSS", floor: 2 ** 20, show: bytes },
  { id: "cpu", label: "CPU", floor: 0.1, show: percent },
];

const histories = new Map();

// Add the measures of one status. Rates come from two statuses of the same process.
function remember(workers, previous, seconds) {
  const names = new Set(workers.map((worker) => worker.name));
  for (const name of histories.keys()) if (!names.has(name)) histories.delete(name);
  const before = new Map(previous.map((worker) => [worker.name, worker]));
  for (const worker of workers) {
    if (!histories.has(worker.name)) histories.set(worker.name, []);
    const history = histories.get(worker.name);
    history.push(measured(worker, before.get(worker.name), seconds));
    if (history.length > SAMPLES) history.shift();
  }
}

function measured(worker, before, seconds) {
  const perSecond = (field) => {
    if (!before || before.pid !== worker.pid || !(seconds > 0)) return null;
    if (worker[field] === null || before[field] === null) return null;
    return Math.max(0, worker[field] - before[field]) / seconds;
  };
  return {
    rate: perSecond("requests"),
    in_flight: worker.in_flight,
    lag: worker.loop_lag_p99,
    rss: worker.rss_bytes,
    cpu: perSecond("cpu_seconds"),
  };
}

function latest(name) {
  return histories.get(name)?.at(-1) ?? {};
}

// The workers share one scale, so that their sparklines can be compared.
function scales(workers) {
  const highest = {};
  for (const { id, floor } of MEASURES) {
    highest[id] = floor;
    for (const { name } of workers) {
      for (const sample of histories.get(name)) highest[id] = Math.max(highest[id], sample[id] ?? 0);
    }
  }
  return highest;
}

function total(workers, value) {
  const values = workers.map(value).filter((number) => typeof number === "number");
  return values.length ? values.reduce((sum, number) => sum + number, 0) : null;
}

// Return the paths of a sparkline: its line and the area below. An unknown value is a gap.
function sparkline(name, id, highest) {
  const history = histories.get(name) ?? [];
  const start = SAMPLES - history.length;
  let line = "", area = "", first = null;
  history.forEach((sample, index) => {
    if (typeof sample[id] !== "number") {
      first = null;
      return;
    }
    const x = start + index, y = (19 - 18 * sample[id] / highest).toFixed(1);
    line += first === null ? `M${x} ${y}` : `L${x} ${y}`;
    area += first === null ? `M${x} 20L${x} ${y}` : `L${x} ${y}`;
    if (first === null) first = x;
    const next = history[index + 1];
    if (!next || typeof next[id] !== "number") area += `L${x} 20Z`;
  });
  return { line, area };
}
