// Two kinds of chart, drawn as SVG from plain objects: lines over x, and dots with intervals in named rows.
// Both redraw at the width they are given, so text keeps its size on a phone.
"use strict";

const svgNode = (tag, attributes, parent, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) write(node, text);
  if (parent) parent.appendChild(node);
  return node;
};

// S_ext and W_Q with their subscripts set as such.
const write = (node, text) => {
  text.split(/(?<=[SW])_(ext|\w)(?!\w)/).forEach((part, i) => {
    const span = document.createElementNS("http://www.w3.org/2000/svg", "tspan");
    span.textContent = part;
    if (i) span.setAttribute("dy", i % 2 ? "0.25em" : "-0.2em");
    if (i % 2) span.setAttribute("font-size", "80%");
    node.appendChild(span);
  });
};

const paint = (name) => `var(--${name})`;

const format = (value, digits) => {
  const size = Math.abs(value);
  if (digits) return value.toFixed(digits);
  if (value === 0) return "0";
  if (size >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return size >= 0.095 ? value.toFixed(2) : value.toPrecision(2);
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

const linePath = (points, x, y) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");

// spec: {label, height?, x: {title, kind?, ticks?}, y: {title, min?, max?, digits?}, marks: [{x, label}],
//        series: [{name, color, points: [[x, y]], dash?, width?, faint?, dots?, shift?}], bands: [{color, points: [[x, low, high]]}]}
function drawLines(holder, spec) {
  const width = Math.max(260, holder.clientWidth), height = spec.height || 270;
  const left = 40, right = 14, top = 28, bottom = 40;
  const series = spec.series.filter((s) => s.points.length), bands = spec.bands || [];
  const xs = series.flatMap((s) => s.points.map((p) => p[0]));
  const ys = [...series.flatMap((s) => s.points.map((p) => p[1])), ...bands.flatMap((b) => b.points.flatMap((p) => [p[1], p[2]]))];
  const yLow = spec.y.min ?? Math.min(...ys), yHigh = spec.y.max ?? Math.max(...ys) + 0.04 * (Math.max(...ys) - yLow);
  const xLow = Math.min(...xs), xHigh = Math.max(...xs);
  const x = scale(spec.x.kind, xLow, xHigh, left, width - right), y = scale("linear", yLow, yHigh, height - bottom, top);

  const svg = svgNode("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: 0, "aria-label": spec.label });
  svgNode("title", {}, svg, spec.label);
  for (const tick of niceTicks(yLow, yHigh, 4)) {
    svgNode("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }, svg);
    svgNode("text", { x: left - 7, y: y(tick) + 4, class: "tick end" }, svg, String(tick));
  }
  let lastTick = -Infinity;
  for (const tick of spec.x.ticks || niceTicks(xLow, xHigh, width / 90, true)) {
    if (x(tick) - lastTick < 26) continue;
    lastTick = x(tick);
    svgNode("text", { x: x(tick), y: height - bottom + 17, class: "tick middle" }, svg, String(tick));
  }
  svgNode("text", { x: (left + width - right) / 2, y: height - 5, class: "axis middle" }, svg, spec.x.title);
  svgNode("text", { x: 0, y: 12, class: "axis" }, svg, spec.y.title);
  for (const mark of spec.marks || []) {
    svgNode("line", { x1: x(mark.x), x2: x(mark.x), y1: top, y2: height - bottom, class: "mark" }, svg);
    svgNode("text", { x: x(mark.x), y: 22, class: "tick middle" }, svg, mark.label);
  }
  for (const { points, color } of bands) {
    const back = [...points].reverse().map((p) => [p[0], p[1]]);
    svgNode("path", { d: linePath([...points.map((p) => [p[0], p[2]]), ...back], x, y) + "Z", class: "band", style: `fill:${paint(color)}` }, svg);
  }
  for (const s of series) {
    const style = `stroke:${paint(s.color)};stroke-width:${s.width ?? 2};stroke-dasharray:${s.dash || "none"};opacity:${s.faint ? 0.28 : 1}`;
    svgNode("path", { d: linePath(s.points, x, y), class: "line", style }, svg);
    if (s.dots) for (const [a, b] of s.points) svgNode("circle", { cx: x(a) + (s.shift || 0), cy: y(b), r: 3, style: `fill:${paint(s.color)}` }, svg);
  }
  holder.replaceChildren(svg);
  if (spec.legend) holder.appendChild(legend(series));
  followPointer(holder, svg, spec, series.filter((s) => !s.faint), { x, top, floor: height - bottom, width, left, right });
}

function legend(series) {
  const list = document.createElement("ul");
  list.className = "legend";
  for (const s of series.filter((each) => each.name)) {
    const item = document.createElement("li"), key = svgNode("svg", { "aria-hidden": true }, item);
    const style = `stroke:${paint(s.color)};stroke-width:${s.width ?? 2};stroke-dasharray:${s.dash || "none"}`;
    svgNode("line", { x1: 0, x2: 26, y1: 4.5, y2: 4.5, style }, key);
    item.append(s.name);
    list.appendChild(item);
  }
  return list;
}

// A crosshair at the nearest x, by pointer or arrow keys, with every named series' value there.
function followPointer(holder, svg, spec, series, { x, top, floor, width, left, right }) {
  const stops = [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
  const hair = svgNode("line", { y1: top, y2: floor, class: "hair", visibility: "hidden" }, svg);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  holder.appendChild(tip);
  let at = 0;
  const show = (index) => {
    at = Math.min(stops.length - 1, Math.max(0, index));
    const here = stops[at], rows = [];
    for (const s of series) {
      const point = s.points.find((p) => p[0] === here);
      if (point) rows.push(`<span class="key" style="background:${paint(s.color)}"></span>${s.name}<b>${format(point[1], spec.y.digits)}</b>`);
    }
    tip.innerHTML = `<i>${spec.x.short || spec.x.title} ${format(here)}</i>` + rows.map((r) => `<div>${r}</div>`).join("");
    tip.hidden = false;
    hair.setAttribute("visibility", "visible");
    hair.setAttribute("x1", x(here));
    hair.setAttribute("x2", x(here));
    const side = x(here) > (left + width - right) / 2 ? x(here) - tip.offsetWidth - 10 : x(here) + 10;
    tip.style.left = `${Math.max(0, side)}px`;
    tip.style.top = `${top}px`;
  };
  const hide = () => { tip.hidden = true; hair.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointermove", (event) => {
    const place = event.clientX - svg.getBoundingClientRect().left;
    show(stops.reduce((best, s, i) => (Math.abs(x(s) - place) < Math.abs(x(stops[best]) - place) ? i : best), 0));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(tip.hidden ? 0 : at + 1);
    else if (event.key === "ArrowLeft") show(tip.hidden ? stops.length - 1 : at - 1);
    else if (event.key === "Escape") hide();
    else return;
    event.preventDefault();
  });
}

// spec: {label, x: {title, kind?, min, max, ticks?}, refs: [{x, label}],
//        rows: [{name, color, value?, interval?: [low, high], points?: [x], note?}]}
function drawDots(holder, spec) {
  const width = Math.max(260, holder.clientWidth), wide = width > 560;
  const left = wide ? 190 : 12, right = 56, top = spec.refs?.length ? 26 : 10, pitch = wide ? 30 : 44;
  const height = top + pitch * spec.rows.length + 42, floor = height - 42;
  const x = scale(spec.x.kind, spec.x.min, spec.x.max, left, width - right);
  const svg = svgNode("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": spec.label });
  svgNode("title", {}, svg, spec.label);
  for (const tick of spec.x.ticks || niceTicks(spec.x.min, spec.x.max, 5)) {
    svgNode("line", { x1: x(tick), x2: x(tick), y1: top, y2: floor, class: "grid" }, svg);
    svgNode("text", { x: x(tick), y: floor + 17, class: "tick middle" }, svg, String(tick));
  }
  for (const ref of spec.refs || []) {
    svgNode("line", { x1: x(ref.x), x2: x(ref.x), y1: top, y2: floor, class: "mark" }, svg);
    svgNode("text", { x: x(ref.x), y: 15, class: `tick ${ref.anchor || "middle"}` }, svg, ref.label);
  }
  svgNode("text", { x: (left + width - right) / 2, y: height - 5, class: "axis middle" }, svg, spec.x.title);
  spec.rows.forEach((row, i) => {
    const y = top + pitch * (i + (wide ? 0.5 : 0.68));
    svgNode("text", wide ? { x: left - 12, y: y + 4, class: "row end" } : { x: left, y: y - 12, class: "row" }, svg, row.name);
    for (const p of row.points || []) svgNode("circle", { cx: x(p), cy: y, r: 3.5, style: `fill:${paint(row.color)};opacity:.35` }, svg);
    if (row.interval) {
      const [low, high] = row.interval.map(x);
      const style = `stroke:${paint(row.color)}`;
      svgNode("line", { x1: low, x2: high, y1: y, y2: y, class: "interval", style }, svg);
      for (const end of [low, high]) svgNode("line", { x1: end, x2: end, y1: y - 8, y2: y + 8, class: "cap", style }, svg);
    }
    if (row.value === undefined) return;
    const dot = svgNode("circle", { cx: x(row.value), cy: y, r: 5.5, class: "dot", style: `fill:${paint(row.color)}` }, svg);
    svgNode("title", {}, dot, row.note || `${row.name}: ${format(row.value)}`);
    svgNode("text", { x: width - right + 10, y: y + 4, class: "value" }, svg, format(row.value));
  });
  holder.replaceChildren(svg);
}

function draw(holder, spec) {
  holder.spec = spec;
  (spec.type === "dots" ? drawDots : drawLines)(holder, spec);
}

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.spec && target.drawnAt !== target.clientWidth) {
      target.drawnAt = target.clientWidth;
      draw(target, target.spec);
    }
  }
});
