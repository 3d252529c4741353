// What is drawn, and how figures are written. Nothing here knows the daemon.

/** For what is not known. */
export const NOTHING = "–";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits, without a tail of zeros. */
const digits = (value) => {
  const text = value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
};

/** `1.50 GiB`, as the daemon's other faces write it; a negative figure has its sign. */
export function bytes(value) {
  if (!isNumber(value)) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let rest = Math.abs(value);
  let unit = 0;
  while (rest >= 1024 && unit < units.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  const places = unit === 0 || rest >= 100 || Number.isInteger(rest) ? 0 : rest >= 10 ? 1 : 2;
  return `${value < 0 ? "−" : ""}${rest.toFixed(places)} ${units[unit]}`;
}

/** `1.5 GiB`, `64M` or `4096` in bytes; NaN for what is no size. */
export function parseSize(text) {
  const found = /^\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(?:i?b)?|b)?\s*$/i.exec(text);
  if (!found) return NaN;
  const power = found[2] ? "kmgt".indexOf(found[2].toLowerCase()) + 1 : 0;
  const size = Math.round(Number(found[1]) * 1024 ** power);
  return Number.isSafeInteger(size) ? size : NaN;
}

export const bytesPerSecond = (value) => (isNumber(value) ? `${bytes(value)}/s` : NOTHING);
export const percent = (value) => (isNumber(value) ? `${(value * 100).toFixed(1)} %` : NOTHING);
export const ratio = (value, places = 3) => (isNumber(value) ? value.toFixed(places) : NOTHING);
export const count = (value) => (isNumber(value) ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : NOTHING);

/** A rate of anything: `12.3`, `1.2 k`, `4 M`. */
export function rate(value) {
  if (!isNumber(value)) return NOTHING;
  const size = Math.abs(value);
  const [by, unit] = size >= 1e9 ? [1e9, " G"] : size >= 1e6 ? [1e6, " M"] : size >= 1e3 ? [1e3, " k"] : [1, ""];
  return `${value < 0 ? "−" : ""}${size === 0 ? "0" : size < 0.005 ? "<0.01" : digits(size / by)}${unit}`;
}

/** `14 s`, `3 min`, `2 h`. */
export function duration(seconds) {
  if (!isNumber(seconds)) return NOTHING;
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  return `${Math.floor(whole / 3600)} h`;
}

/** A time of the day where the browser is. */
export const clock = (ms) => (isNumber(ms) ? new Date(ms).toLocaleTimeString("en-GB") : NOTHING);

/** A name with what can't be seen, or would turn what stands beside it, written out. */
export const visible = (text) =>
  String(text ?? "").replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (it) => `‹U+${it.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`);

/** An element with a text; children after it. */
export function make(tag, options = {}, ...children) {
  const { text, ...attributes } = options;
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Writes a text where it differs. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Okabe and Ito's colours, which people tell apart who see some colours alike. Each has a pattern, too.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8a949e"];
export const SERIES = COLOURS.length;

const patterns = new Map();

/** The colour of a series with its pattern, for a canvas. */
function pattern(context, at) {
  const key = `${at} ${devicePixelRatio}`;
  if (!patterns.has(key)) {
    const size = 8 * Math.max(1, Math.round(devicePixelRatio));
    const tile = document.createElement("canvas");
    tile.width = tile.height = size;
    const pen = tile.getContext("2d");
    pen.fillStyle = COLOURS[at];
    pen.fillRect(0, 0, size, size);
    pen.strokeStyle = pen.fillStyle = "#0006";
    pen.lineWidth = size / 8;
    pen.beginPath();
    const line = (a, b, c, d) => {
      pen.moveTo(a * size, b * size);
      pen.lineTo(c * size, d * size);
    };
    // Plain, rising, falling, level, upright, dots, crossed, plain.
    if (at === 1) for (const s of [-1, 0, 1]) line(s, 1, s + 1, 0);
    if (at === 2) for (const s of [-1, 0, 1]) line(s, 0, s + 1, 1);
    if (at === 3) line(0, 0.5, 1, 0.5);
    if (at === 4) line(0.5, 0, 0.5, 1);
    if (at === 5) pen.fillRect(size * 0.35, size * 0.35, size * 0.3, size * 0.3);
    if (at === 6) {
      line(0, 0.5, 1, 0.5);
      line(0.5, 0, 0.5, 1);
    }
    pen.stroke();
    patterns.set(key, tile);
  }
  return context.createPattern(patterns.get(key), "repeat");
}

/** Sizes on the screen: to ask for them makes the browser lay everything out. */
const sizes = new WeakMap();
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) sizes.delete(target);
});

function sizeOf(canvas) {
  if (!sizes.has(canvas)) {
    sizes.set(canvas, { width: canvas.clientWidth, height: canvas.clientHeight });
    resized.observe(canvas);
  }
  return sizes.get(canvas);
}

/** The canvas in its size on the screen, cleared; lengths are CSS pixels. */
function prepared(canvas) {
  const { width, height } = sizeOf(canvas);
  const scale = devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `12px ${ink().font}`;
  return { pen, width, height };
}

let inks = null;

/** The colours of the scheme that is in force. */
export function ink() {
  if (!inks) {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    inks = { ink: of("--ink"), soft: of("--soft"), line: of("--line"), card: of("--card"), accent: of("--accent"), font: getComputedStyle(document.body).fontFamily };
  }
  return inks;
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (inks = null));

/** A small square in the colour and pattern of a series. */
export function swatch(canvas, at) {
  const { pen, width, height } = prepared(canvas);
  pen.fillStyle = pattern(pen, at);
  pen.fillRect(0, 0, width, height);
}

/** A round number of bytes of which a few make `most`. */
function byteStep(most) {
  const rough = most / 4;
  const power = 2 ** Math.floor(Math.log2(Math.max(rough, 1)));
  return power < rough / 1.5 ? power * 2 : power;
}

function grid(pen, width, height, left, bottom, most, label) {
  const step = byteStep(most);
  const colours = ink();
  pen.strokeStyle = colours.line;
  pen.fillStyle = colours.soft;
  pen.lineWidth = 1;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (let value = 0, lines = 0; value <= most * 1.001 && lines < 9; value += step, lines += 1) {
    const y = Math.round(bottom - (value / most) * (bottom - 8)) + 0.5;
    pen.beginPath();
    pen.moveTo(left, y);
    pen.lineTo(width, y);
    pen.stroke();
    pen.fillText(label(value), left - 6, y);
  }
}

/**
 * Shares over time. `series`: `{ share, entitled }`, arrays of bytes (NaN: not known) with a value for each
 * step, the oldest first. `seconds`: how long that is.
 */
export function drawShares(canvas, series, steps, seconds, pool) {
  const { pen, width, height } = prepared(canvas);
  const [left, bottom] = [66, height - 20];
  const stack = new Float64Array(steps);
  const total = new Float64Array(steps);
  let most = isNumber(pool) ? pool : 0;
  for (const { share } of series) for (let at = 0; at < steps; at += 1) total[at] += share[at] || 0;
  for (const sum of total) most = Math.max(most, sum);
  // No host has more: what is, is an error of its sender, and must not keep the page busy.
  most = Math.min(Math.max(most, 1), 2 ** 63);
  grid(pen, width, height, left, bottom, most, bytes);
  const x = (at) => left + ((width - left) * at) / Math.max(1, steps - 1);
  const y = (value) => bottom - Math.min(1, value / most) * (bottom - 8);
  const lines = [];
  const entitledStack = new Float64Array(steps);
  series.forEach(({ share, entitled, colour }) => {
    pen.beginPath();
    for (let at = 0; at < steps; at += 1) pen.lineTo(x(at), y(stack[at]));
    const top = stack.slice();
    for (let at = 0; at < steps; at += 1) top[at] += share[at] || 0;
    for (let at = steps - 1; at >= 0; at -= 1) pen.lineTo(x(at), y(top[at]));
    pen.fillStyle = pattern(pen, colour);
    pen.fill();
    stack.set(top);
    for (let at = 0; at < steps; at += 1) entitledStack[at] += entitled[at] || 0;
    // Lines that lie close to each other can't be told apart: the last one stands for them.
    const [now, before] = [entitledStack[steps - 1] || 0, lines.at(-1)?.[steps - 1] || 0];
    if (lines.length > 0 && ((now - before) / most) * bottom < 8) lines.pop();
    lines.push(Float64Array.from(entitledStack));
  });
  const colours = ink();
  pen.save();
  pen.lineWidth = 3;
  for (const [style, wide, dash] of [[colours.card, 3, []], [colours.ink, 1.4, [5, 4]]]) {
    pen.strokeStyle = style;
    pen.lineWidth = wide;
    pen.setLineDash(dash);
    for (const line of lines) {
      pen.beginPath();
      let wasKnown = false;
      for (let at = 0; at < steps; at += 1) {
        if (line[at] > 0) pen[wasKnown ? "lineTo" : "moveTo"](x(at), y(line[at]));
        wasKnown = line[at] > 0;
      }
      pen.stroke();
    }
  }
  pen.restore();
  timeAxis(pen, width, height, left, seconds);
}

function timeAxis(pen, width, height, left, seconds) {
  pen.fillStyle = ink().soft;
  pen.textBaseline = "alphabetic";
  const parts = 5;
  for (let part = 0; part <= parts; part += 1) {
    pen.textAlign = part === 0 ? "left" : part === parts ? "right" : "center";
    const ago = seconds * (1 - part / parts);
    const words = ago === 0 ? "now" : `${seconds > 900 ? `${Math.round(ago / 60)} min` : `${Math.round(ago)} s`} ago`;
    if (width > 520 || part % parts === 0) pen.fillText(words, left + ((width - left) * part) / parts, height - 4);
  }
}

/** The demand curve: `points` of bytes and hits a second; `here` the bytes in DRAM. */
export function drawCurve(canvas, points, here, total, guestBytes) {
  const { pen, width, height } = prepared(canvas);
  const [left, bottom] = [52, height - 22];
  const colours = ink();
  const last = points.length ? points[points.length - 1] : [0, 0];
  const wide = Math.max(last[0], here || 0, 1) * 1.05;
  const most = Math.max(total || 0, last[1], 1e-9);
  pen.strokeStyle = colours.line;
  pen.fillStyle = colours.soft;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  const x = (value) => left + ((width - left - 8) * Math.min(value, wide)) / wide;
  const y = (hits) => bottom - (hits / most) * (bottom - 10);
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    pen.beginPath();
    pen.moveTo(left, y(most * part));
    pen.lineTo(width, y(most * part));
    pen.stroke();
    pen.fillText(`${part * 100} %`, left - 6, y(most * part));
  }
  pen.textBaseline = "alphabetic";
  for (const part of [0, 0.5, 1]) {
    pen.textAlign = part === 0 ? "left" : part === 1 ? "right" : "center";
    pen.fillText(bytes(wide * part), left + (width - left - 8) * part, height - 5);
  }
  pen.strokeStyle = colours.accent;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.moveTo(x(0), y(0));
  for (const [size, hits] of points) pen.lineTo(x(size), y(hits));
  pen.lineTo(x(wide), y(last[1]));
  pen.stroke();
  if (!isNumber(here)) return;
  const hits = hitsAt(points, here);
  pen.strokeStyle = colours.ink;
  pen.lineWidth = 1;
  pen.setLineDash([4, 3]);
  pen.beginPath();
  pen.moveTo(x(here), bottom);
  pen.lineTo(x(here), 10);
  pen.stroke();
  pen.setLineDash([]);
  pen.fillStyle = colours.ink;
  pen.beginPath();
  pen.arc(x(here), y(hits), 4.5, 0, 7);
  pen.fill();
  const fits = x(here) < width - 110;
  pen.textAlign = fits ? "left" : "right";
  pen.fillText("you are here", x(here) + (fits ? 8 : -8), Math.min(bottom - 6, y(hits) + 16));
}

/** The hits of so many bytes, between the points. */
export function hitsAt(points, size) {
  let before = [0, 0];
  for (const point of points) {
    if (point[0] >= size) {
      const part = point[0] > before[0] ? (size - before[0]) / (point[0] - before[0]) : 1;
      return before[1] + part * (point[1] - before[1]);
    }
    before = point;
  }
  return before[1];
}

// Heat from cold to hot on a fixed scale: a tenth of an access a second, one, ten, and so on. Lightness
// rises all the way (cividis), so that it can be read without colours.
export const HEAT_EDGES = [0.01, 0.1, 1, 10, 100, 1000];
const HEAT = ["#00224e", "#1f3a6e", "#435379", "#6c6e72", "#99895f", "#c9a84b", "#fdea45"];

/** The class of a rate of accesses a second. */
const heatClass = (perSecond) => HEAT_EDGES.filter((edge) => perSecond >= edge).length;

function fillHeat(pen, heat, fastShare, x, y, wide, high) {
  if (fastShare === null || fastShare === undefined) {
    // Not present.
    pen.strokeStyle = ink().line;
    pen.strokeRect(x + 0.5, y + 0.5, wide - 1, high - 1);
    return;
  }
  pen.fillStyle = HEAT[heatClass(heat)];
  pen.fillRect(x, y, wide, high);
  const stripes = fastShare >= 0.95 ? 0 : fastShare > 0.05 ? 1 : 2;
  if (!stripes) return;
  pen.fillStyle = heatClass(heat) > 3 ? "#0009" : "#fff6";
  if (wide >= 5) for (let at = 0; at < stripes; at += 1) pen.fillRect(x, Math.round(y + (high * (at + 1)) / (stripes + 1)), wide, 1);
  else if (high >= 3) pen.fillRect(x, y + high - 1, wide, 1);
}

/** The heat map; returns where its cells lie: `{ columns, rows, wide, high }`. */
export function drawHeat(canvas, map, chosen) {
  const { pen, width, height } = prepared(canvas);
  const { rows, columns, cells } = map;
  const [wide, high] = [width / columns, height / rows];
  cells.forEach((cell, at) => {
    const [x, y] = [Math.floor((at % columns) * wide), Math.floor(Math.floor(at / columns) * high)];
    fillHeat(pen, cell.rate, cell["fast-share"], x, y, Math.ceil(wide), Math.ceil(high));
  });
  if (chosen !== null && chosen < cells.length) {
    const [x, y] = [(chosen % columns) * wide, Math.floor(chosen / columns) * high];
    for (const [style, inset] of [[ink().card, -1], [ink().ink, -3]]) {
      pen.strokeStyle = style;
      pen.lineWidth = 2;
      pen.strokeRect(x + inset, y + inset, wide - 2 * inset, high - 2 * inset);
    }
  }
  return { rows, columns, wide, high };
}

/** One class of heat, or `slow`, `mixed`, `absent`, for the legend. */
export function heatSwatch(canvas, kind) {
  const { pen, width, height } = prepared(canvas);
  const share = { slow: 0, mixed: 0.5, absent: null }[kind];
  const heat = typeof kind === "number" ? (kind === 0 ? 0 : HEAT_EDGES[kind - 1]) : 1;
  fillHeat(pen, heat, share === undefined ? 1 : share, 0, 0, width, height);
}

/** Heat over time: `rows` of `{ heat, fast }`, arrays over the guest's memory; the newest row below. */
export function drawDrift(canvas, rows, most) {
  const { pen, width, height } = prepared(canvas);
  const high = height / most;
  rows.forEach(({ heat, fast }, row) => {
    const y = Math.floor((most - rows.length + row) * high);
    const wide = width / heat.length;
    for (let at = 0; at < heat.length; at += 1) {
      const share = Number.isNaN(fast[at]) ? null : fast[at];
      fillHeat(pen, heat[at], share, Math.floor(at * wide), y, Math.ceil(wide), Math.ceil(high));
    }
  });
}

/** A line of values from 0 to 1, NaN where not known. */
export function drawSpark(canvas, values) {
  const { pen, width, height } = prepared(canvas);
  const colours = ink();
  pen.strokeStyle = colours.line;
  pen.strokeRect(0.5, 0.5, width - 1, height - 1);
  pen.strokeStyle = colours.accent;
  pen.lineWidth = 1.5;
  pen.beginPath();
  let wasKnown = false;
  values.forEach((value, at) => {
    const isKnown = isNumber(value);
    const x = (at / Math.max(1, values.length - 1)) * width;
    const y = height - 2 - Math.min(1, Math.max(0, value)) * (height - 4);
    if (isKnown) pen[wasKnown ? "lineTo" : "moveTo"](x, y);
    wasKnown = isKnown;
  });
  pen.stroke();
}
