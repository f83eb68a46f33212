// Numbers and times as text. An unknown value (null) is a dash.

const UNKNOWN = "\u2013";

function known(value, text) {
  return typeof value === "number" && Number.isFinite(value) ? text(value) : UNKNOWN;
}

function rounded(value) {
  return value < 9.95 ? String(Math.round(value * 10) / 10) : String(Math.round(value));
}

function count(value) {
  return known(value, (number) => {
    if (number < 9999.5) return rounded(number);
    return number < 999950 ? `${(number / 1e3).toFixed(1)}k` : `${(number / 1e6).toFixed(1)}M`;
  });
}

function percent(share) {
  return known(share, (number) => `${rounded(number * 100)} %`);
}

function bytes(value) {
  return known(value, (number) => {
    if (number < 1024 ** 2) return `${rounded(number / 1024)} KiB`;
    return number < 1024 ** 3 ? `${rounded(number / 1024 ** 2)} MiB` : `${rounded(number / 1024 ** 3)} GiB`;
  });
}

// A short time, such as a delay of the event loop.
function delay(seconds) {
  return known(seconds, (number) => {
    const [value, unit] = number < 0.9995 ? [number * 1e3, "ms"] : [number, "s"];
    return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${unit}`;
  });
}

// A long time, in its two largest units.
function duration(seconds) {
  return known(seconds, (number) => {
    if (number < 59.95) return `${rounded(number)} s`;
    const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
    const first = units.findIndex(([, size]) => Math.round(number) >= size);
    let rest = Math.round(number);
    return units.slice(first, first + 2).map(([unit, size]) => {
      const whole = Math.floor(rest / size);
      rest -= whole * size;
      return whole ? `${whole} ${unit}` : "";
    }).filter(Boolean).join(" ");
  });
}

function clock(iso) {
  const time = new Date(iso);
  return Number.isNaN(time.getTime()) ? UNKNOWN : time.toLocaleTimeString([], { hour12: false });
}

// A name within a sentence cannot turn the direction of the text behind it.
function isolated(name) {
  return `\u2068${name}\u2069`;
}

function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}
