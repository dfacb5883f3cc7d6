// What every chart is made of: SVG nodes, text with subscripts, numbers, scales and ticks.
"use strict";

const svgNode = (tag, attributes, parent, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) write(node, text);
  if (parent) parent.appendChild(node);
  return node;
};

const htmlNode = (tag, attributes, parent, text) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) write(node, text);
  if (parent) parent.appendChild(node);
  return node;
};

// S_ext, W_Q and r_ext with their subscripts set as such, in SVG and in HTML. Names come from configurations: as text only.
const write = (node, text) => {
  const drawn = node.namespaceURI === "http://www.w3.org/2000/svg";
  String(text).split(/(?<=\b[SWrDT])_(ext|int|eff|\w)(?!\w)/).forEach((part, i) => {
    if (!drawn) return node.append(i % 2 ? htmlNode("sub", {}, null, part) : part);
    const span = document.createElementNS(node.namespaceURI, "tspan");
    span.textContent = part;
    if (i) span.setAttribute("dy", i % 2 ? "0.25em" : "-0.2em");
    if (i % 2) span.setAttribute("font-size", "85%");
    node.appendChild(span);
  });
};

const paint = (name) => `var(--${name})`;

const format = (value, digits) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const told = digits !== undefined && digits !== null ? value.toFixed(digits)
    : value === 0 ? "0"
    : size >= 1e6 || size < 1e-3 ? value.toExponential(1).replace("e+", "e")
    : size >= 100 || Number.isInteger(value) ? String(Math.round(value))
    : size >= 0.095 ? value.toFixed(2) : value.toPrecision(2);
  return told.replace("-", "−");
};

const scale = (kind, from, to, start, end) => {
  const f = kind === "log" ? Math.log : (v) => v;
  const span = f(to) - f(from) || 1;
  return (v) => start + ((f(v) - f(from)) / span) * (end - start);
};

const niceTicks = (low, high, count, whole = false) => {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const fits = (s) => s >= raw && (!whole || Number.isInteger(s));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find(fits) ?? 1;
  const ticks = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) ticks.push(+v.toPrecision(12));
  return ticks;
};

const logTicks = (low, high) => {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1; power++) {
    for (const digit of [1, 2, 5]) ticks.push(+(digit * 10 ** power).toPrecision(3));
  }
  const inside = ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  const decades = inside.filter((t) => /^1/.test(t.toExponential()));
  return decades.length >= 3 ? decades : inside;
};

// A tick as short as its value allows, whole numbers in full; of one axis, all with the digits of the finest.
const tickText = (value, digits = 8) => {
  const size = Math.abs(value), short = Number.isInteger(value) ? value : +value.toPrecision(digits);
  return (size && (size >= 1e6 || size < 1e-4) ? short.toExponential().replace("e+", "e") : String(short)).replace("-", "−");
};

const tickTexts = (ticks) => {
  const digits = Math.max(0, ...ticks.map((t) => (tickText(t).split(".")[1] || "").length));
  return new Map(ticks.map((t) => [t, tickText(t).includes("e") ? tickText(t) : t.toFixed(digits).replace("-", "−")]));
};

// Words broken at spaces into lines of about `width` pixels.
const wrapped = (text, width, each = 6.4) => {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (lines.at(-1) && longer.length * each > width) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
};

const SHAPES = {
  circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0Z`,
  square: (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
  triangle: (x, y, r) => `M${x},${y - 1.25 * r}l${1.25 * r},${2.2 * r}h${-2.5 * r}Z`,
  diamond: (x, y, r) => `M${x},${y - 1.35 * r}l${1.35 * r},${1.35 * r}l${-1.35 * r},${1.35 * r}l${-1.35 * r},${-1.35 * r}Z`,
};

// One path for all marks of a series: a chart of many runs and heads stays quick.
const markers = (shape, places, r, style, parent) =>
  svgNode("path", { d: places.map(([x, y]) => (SHAPES[shape] || SHAPES.circle)
    (+x.toFixed(1), +y.toFixed(1), r)).join(""), class: "marker", style }, parent);

const frame = (holder, width, height, label, focus = true) => {
  const svg = svgNode("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  if (focus) svg.setAttribute("tabindex", 0);
  return svg;
};

// Labels over uprights; one that would run into another goes a line lower. Returns how many lines were used.
const placeLabels = (labels, low, high) => {
  const rows = [];
  for (const each of labels) {
    const half = (each.text.length * 6.2) / 2;
    each.x = Math.min(high - half, Math.max(low + half, each.at));
    each.row = rows.findIndex((end) => each.x - half > end + 8);
    if (each.row < 0) each.row = rows.length;
    rows[each.row] = each.x + half;
  }
  return rows.length;
};
