// Lines over x: {type: "lines", label, height?, x: {title, kind?, ticks?, short?}, y: {title, kind?, min?, max?, digits?},
//   marks: [{x, label}], levels: [{y, label}], yregion?: [low, high], arrows: [{x, from, to, label, tags?}],
//   series: [{name, color, points: [[x, y]], dash?, width?, faint?, marker?, band?: [[x, low, high]],
//   bars?: the band as a bar at every x, tags?}]}
// A series is drawn where none of its tags (its name, if it has none) is switched off in the legend.
"use strict";

const tagsOf = (series) => series.tags || [series.name];

const linePath = (points, x, y) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");

const extent = (values, fallback) => {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (Number.isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  return low > high ? fallback : [low, high];
};

function drawLines(holder, spec, off) {
  const width = Math.max(240, holder.clientWidth), height = spec.height || 290;
  const all = spec.series.map((s) => ({ ...s, points: s.points.filter(([, b]) => Number.isFinite(b)),
    band: s.band?.filter(([, a, b]) => Number.isFinite(a) && Number.isFinite(b)) })).filter((s) => s.points.length);
  const series = all.filter((s) => !tagsOf(s).some((tag) => off.has(tag)));
  const [xLow, xHigh] = extent(all.flatMap((s) => s.points.map((p) => p[0])), [0, 1]);
  const seen = (series.length ? series : all).flatMap((s) =>
    [...s.points.map((p) => p[1]), ...(s.band || []).flatMap((b) => [b[1], b[2]])]);
  const [low, high] = extent([...seen, ...(spec.levels || []).map((l) => l.y), ...(spec.yregion || [])], [0, 1]),
    log = spec.y.kind === "log";
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  const yLow = spec.y.min ?? (log ? low / 1.08 : low - room), yHigh = spec.y.max ?? (log ? high * 1.08 : high + room);
  const yTicks = log ? logTicks(yLow, yHigh) : niceTicks(yLow, yHigh, 4);
  const yTold = log ? new Map(yTicks.map((t) => [t, tickText(t)])) : tickTexts(yTicks);
  const left = 14 + 6.8 * Math.max(...[...yTold.values()].map((told) => told.length), 2), right = 16;
  const title = wrapped(spec.y.title, width), xTitle = wrapped(spec.x.title, width - left);
  const x = scale(spec.x.kind, xLow, xHigh, left + 4, width - right);
  const labels = (spec.marks || []).map((m) => ({ at: x(m.x), text: m.label }));
  const lines = placeLabels(labels, left, width);
  const top = 15 * title.length + 12 + 17 * lines, bottom = 24 + 15 * xTitle.length;
  const y = scale(spec.y.kind, yLow, yHigh, height - bottom, top);

  const svg = frame(holder, width, height, spec.label);
  if (spec.yregion) {
    const [from, to] = spec.yregion.map(y);
    svgNode("rect", { x: left, width: width - right - left + 4, y: to, height: from - to, class: "region" }, svg);
  }
  title.forEach((line, i) => svgNode("text", { x: 0, y: 12 + 15 * i, class: "axis" }, svg, line));
  for (const tick of yTicks) {
    svgNode("line", { x1: left, x2: width - right + 4, y1: y(tick), y2: y(tick), class: "grid" }, svg);
    svgNode("text", { x: left - 7, y: y(tick) + 4, class: "tick end" }, svg, yTold.get(tick));
  }
  let lastEnd = -Infinity;
  const whole = all.every((s) => s.points.every((p) => Number.isInteger(p[0])));
  const xTicks = spec.x.ticks || (spec.x.kind === "log" ? logTicks(xLow, xHigh) : niceTicks(xLow, xHigh, width / 80, whole));
  const xTold = spec.x.ticks || spec.x.kind === "log" ? new Map(xTicks.map((t) => [t, tickText(t, 3)])) : tickTexts(xTicks);
  for (const tick of xTicks) {
    if (x(tick) < left || x(tick) > width - right + 1) continue;
    const told = spec.x.names?.[tick] ?? xTold.get(tick), half = told.length * 3.4 + 4;
    if (x(tick) - half < lastEnd) continue;
    lastEnd = x(tick) + half;
    svgNode("text", { x: Math.min(x(tick), width - half + 4), y: height - bottom + 17, class: "tick middle" }, svg, told);
  }
  xTitle.forEach((line, i) => svgNode("text", { x: (left + width - right) / 2,
    y: height - 5 - 15 * (xTitle.length - 1 - i), class: "axis middle" }, svg, line));
  (spec.marks || []).forEach((mark, i) => {
    svgNode("line", { x1: x(mark.x), x2: x(mark.x), y1: top, y2: height - bottom, class: "mark" }, svg);
    svgNode("text", { x: labels[i].x, y: 15 * title.length + 15 + 15 * labels[i].row, class: "tick middle" }, svg, mark.label);
  });
  for (const level of spec.levels || []) {
    svgNode("line", { x1: left, x2: width - right, y1: y(level.y), y2: y(level.y), class: "mark" }, svg);
    svgNode("text", { x: width - right, y: y(level.y) - 5, class: "tick end halo" }, svg, level.label);
  }
  for (const s of series.filter((each) => each.band?.length && each.bars)) {
    for (const [at, from, to] of s.band) svgNode("line", { x1: x(at), x2: x(at), y1: y(from), y2: y(to), class: "interval",
      style: `stroke:${paint(s.color)}` }, svg);
  }
  for (const s of series.filter((each) => each.band?.length && !each.bars)) {
    const back = [...s.band].reverse().map((p) => [p[0], p[1]]);
    svgNode("path", { d: linePath([...s.band.map((p) => [p[0], p[2]]), ...back], x, y) + "Z", class: "band",
      style: `fill:${paint(s.color)}` }, svg);
  }
  for (const s of series) {
    const style = `stroke:${paint(s.color)};stroke-width:${s.width ?? 2};stroke-dasharray:${s.dash || "none"};opacity:${s.faint ? 0.3 : 1}`;
    if (s.width !== 0) svgNode("path", { d: linePath(s.points, x, y), class: "line", style, "data-series": s.name }, svg);
    const places = s.points.map(([a, b]) => [x(a) + (s.shift || 0), y(b)]);
    if (s.marker) markers(s.marker, places, spec.small ? 2 : 3.1, `fill:${paint(s.color)}`, svg);
  }
  for (const arrow of (spec.arrows || []).filter((each) => !(each.tags || []).some((tag) => off.has(tag)))) {
    const [at, from, to] = [x(arrow.x), y(arrow.from), y(arrow.to)];
    svgNode("path", { d: `M${at},${from}V${to}M${at - 4},${to + 6}L${at},${to}L${at + 4},${to + 6}M${at - 4},${from - 6}L${at},${from}L${at + 4},${from - 6}`, class: "arrow" }, svg);
    svgNode("text", { x: at + 8, y: Math.min(to + 16, from - 4), class: "value halo" }, svg, arrow.label);
  }
  holder.replaceChildren(svg);
  followPointer(holder, svg, spec, series.filter((s) => !s.faint && s.name), { x, top, floor: height - bottom });
}
