// Dots and intervals in named rows: {type: "dots", label, x: {title, kind?, min, max, ticks?, digits?}, refs: [{x, label}],
//   region?: [low, high], rows: [{name, color, marker?, value?, null?: x of its null, interval?: [low, high], points?: [x], note?}]}
"use strict";

function drawDots(holder, spec, off) {
  const rows = spec.rows.filter((row) => !off.has(row.name));
  const width = Math.max(240, holder.clientWidth), longest = Math.max(...rows.map((row) => row.name.length), 4);
  const wide = 24 + 7 * longest <= 0.46 * width; // names beside the rows, else above them
  const left = wide ? 24 + 7 * longest : 10, right = 58, pitch = wide ? (rows.length > 16 ? 24 : 30) : 46;
  const x = scale(spec.x.kind, spec.x.min, spec.x.max, left, width - right);
  const labels = (spec.refs || []).map((ref) => ({ at: x(ref.x), text: ref.label }));
  const top = 12 + 15 * placeLabels(labels, left - 4, width), xTitle = wrapped(spec.x.title, width - left - 20);
  const height = top + pitch * rows.length + 26 + 15 * xTitle.length, floor = top + pitch * rows.length;
  const svg = frame(holder, width, height, spec.label);
  if (spec.region) {
    const [from, to] = spec.region.map(x);
    svgNode("rect", { x: from, width: Math.max(0, to - from), y: top, height: floor - top, class: "region" }, svg);
  }
  let lastEnd = -Infinity;
  const { min, max } = spec.x, few = wide ? 5 : 3;
  const ticks = spec.x.ticks || (spec.x.kind === "log" ? logTicks(min, max) : niceTicks(min, max, few));
  const texts = spec.x.kind === "log" ? new Map(ticks.map((t) => [t, tickText(t)])) : tickTexts(ticks);
  for (const tick of ticks) {
    if (tick < spec.x.min || tick > spec.x.max) continue;
    svgNode("line", { x1: x(tick), x2: x(tick), y1: top, y2: floor, class: "grid" }, svg);
    const told = texts.get(tick), half = told.length * 3.4 + 4;
    if (x(tick) - half < lastEnd) continue;
    lastEnd = x(tick) + half;
    svgNode("text", { x: Math.max(x(tick), half), y: floor + 17, class: "tick middle" }, svg, told);
  }
  (spec.refs || []).forEach((ref, i) => {
    svgNode("line", { x1: x(ref.x), x2: x(ref.x), y1: top, y2: floor, class: "mark" }, svg);
    svgNode("text", { x: labels[i].x, y: 13 + 15 * labels[i].row, class: "tick middle" }, svg, ref.label);
  });
  xTitle.forEach((line, i) => svgNode("text", { x: (left + width - right) / 2,
    y: height - 5 - 15 * (xTitle.length - 1 - i), class: "axis middle" }, svg, line));
  const places = rows.map((row, i) => {
    const y = top + pitch * (i + (wide ? 0.5 : 0.7)), style = `stroke:${paint(row.color)}`;
    const name = wide ? fitted(row.name, left - 16) : fitted(row.name, width - 10);
    svgNode("text", wide ? { x: left - 12, y: y + 4, class: "row end" } : { x: left - 8, y: y - 13, class: "row" }, svg, name);
    const points = (row.points || []).filter(Number.isFinite), faint = `fill:${paint(row.color)};opacity:.3`;
    if (points.length > 200) markers("circle", points.map((p) => [x(p), y]), 3.2, faint, svg);
    else for (const p of points) markers("circle", [[x(p), y]], 3.2, faint, svg); // where two lie on each other, it is darker
    if (row.interval) {
      const [low, high] = row.interval.map(x);
      svgNode("line", { x1: low, x2: high, y1: y, y2: y, class: "interval", style }, svg);
      for (const end of [low, high]) svgNode("line", { x1: end, x2: end, y1: y - 7, y2: y + 7, class: "cap", style }, svg);
    }
    if (Number.isFinite(row.null)) svgNode("line", { x1: x(row.null), x2: x(row.null), y1: y - 10, y2: y + 10,
      class: "null-tick" }, svg);
    if (Number.isFinite(row.value)) {
      markers(row.marker || "circle", [[x(row.value), y]], 5, `fill:${paint(row.color)};stroke:var(--panel);stroke-width:1.5`, svg);
      svgNode("text", { x: width, y: y + 4, class: "value end" }, svg, format(row.value, spec.x.digits));
    }
    return y;
  });
  holder.replaceChildren(svg);
  readRows(holder, svg, spec, rows, { places, x, pitch });
}

const fitted = (text, width) => (text.length * 6.9 <= width ? text : `${text.slice(0, Math.max(3, Math.floor(width / 6.9) - 1))}…`);

// A row's numbers in full, by pointer or arrow keys.
function readRows(holder, svg, spec, rows, { places, x, pitch }) {
  const tip = tipIn(holder);
  const rowAt = (event) => Math.round((event.clientY - svg.getBoundingClientRect().top - places[0]) / pitch);
  stepping(svg, rows.length, rowAt, (at) => {
    const row = rows[at], [low, high] = row.interval || [];
    const told = [["value", row.value], ["random alike", row.null], ["from", low], ["to", high]];
    const points = (row.points || []).filter(Number.isFinite);
    const counted = `${points.length} ${spec.x.points || "points"}, least`;
    if (points.length) told.push([counted, Math.min(...points)], ["most", Math.max(...points)]);
    const lines = told.filter(([, value]) => Number.isFinite(value)).map(([name, value]) => ({ name,
      value: format(value, spec.x.digits ?? 3) }));
    if (row.note) lines.push({ name: row.note, value: "" });
    tip.tell(row.name, lines, Number.isFinite(row.value) ? x(row.value) : holder.clientWidth / 2, places[at] + 12);
  }, () => tip.hide());
}
