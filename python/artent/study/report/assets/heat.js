// A heat map: {type: "heat", label, x: {title, names}, y: {title, names}, value: {title, min, max, digits?, diverging?}, cells: [[value]]}
// Colours go from the least to the most; diverging ones from minus to plus the greatest distance from zero.
"use strict";

const SEQUENTIAL = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"]; // cividis: lightness alone tells
const DIVERGING = ["#2166ac", "#92c5de", "#f0f0f0", "#f4a582", "#b2182b"];

const mixed = (ramp, share) => {
  const at = Math.min(1, Math.max(0, share)) * (ramp.length - 1), i = Math.min(ramp.length - 2, Math.floor(at)), part = at - i;
  const channel = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  return `rgb(${[0, 1, 2].map((k) => Math.round(channel(ramp[i], k) * (1 - part) + channel(ramp[i + 1], k) * part)).join(",")})`;
};

function drawHeat(holder, spec) {
  const width = Math.max(240, holder.clientWidth), columns = spec.x.names.length, rows = spec.y.names.length;
  const left = 34, right = 4, top = 22, cell = (width - left - right) / columns;
  const tall = Math.min(30, Math.max(9, Math.min(cell, 420 / rows))), floor = top + tall * rows, height = floor + 92;
  const ramp = spec.value.diverging ? DIVERGING : SEQUENTIAL, { min, max } = spec.value;
  const share = (v) => (v - min) / (max - min || 1);
  const svg = frame(holder, width, height, spec.label);
  svgNode("text", { x: 0, y: 12, class: "axis" }, svg, spec.y.title);
  spec.cells.forEach((row, j) => row.forEach((value, i) => {
    const place = { x: (left + i * cell).toFixed(2), y: (top + j * tall).toFixed(2), width: (cell + 0.3).toFixed(2),
      height: (tall + 0.3).toFixed(2) };
    svgNode("rect", { ...place, class: "cell", style: `fill:${Number.isFinite(value) ? mixed(ramp, share(value)) : "none"}` }, svg);
  }));
  const rowStep = Math.ceil(14 / tall), columnStep = Math.ceil(24 / cell);
  spec.y.names.forEach((name, j) => j % rowStep || svgNode("text", { x: left - 7, y: top + tall * (j + 0.5) + 4,
    class: "tick end" }, svg, name));
  spec.x.names.forEach((name, i) => i % columnStep || svgNode("text", { x: left + cell * (i + 0.5), y: floor + 16,
    class: "tick middle" }, svg, name));
  svgNode("text", { x: (left + width) / 2, y: floor + 32, class: "axis middle" }, svg, spec.x.title);

  const bar = Math.min(260, width - left - right), steps = 40;
  for (let k = 0; k < steps; k++) {
    svgNode("rect", { x: left + (bar * k) / steps, y: floor + 46, width: bar / steps + 0.4, height: 9,
      style: `fill:${mixed(ramp, (k + 0.5) / steps)}` }, svg);
  }
  svgNode("text", { x: left, y: floor + 70, class: "tick" }, svg, format(min, spec.value.digits));
  svgNode("text", { x: left + bar, y: floor + 70, class: "tick end" }, svg, format(max, spec.value.digits));
  svgNode("text", { x: left, y: floor + 87, class: "axis" }, svg, spec.value.title);
  holder.replaceChildren(svg);

  const tip = tipIn(holder), hair = svgNode("rect", { width: cell, height: tall, class: "chosen", visibility: "hidden" }, svg);
  const inside = (event) => {
    const box = svg.getBoundingClientRect();
    const i = Math.floor((event.clientX - box.left - left) / cell), j = Math.floor((event.clientY - box.top - top) / tall);
    return i >= 0 && i < columns && j >= 0 && j < rows ? j * columns + i : -1;
  };
  stepping(svg, rows * columns, inside, (at) => {
    const i = at % columns, j = Math.floor(at / columns);
    for (const [key, value] of Object.entries({ x: left + i * cell, y: top + j * tall,
      visibility: "visible" })) hair.setAttribute(key, value);
    const lines = [{ name: spec.value.title, value: format(spec.cells[j][i], spec.value.digits ?? 3) }];
    tip.tell(`${spec.y.title} ${spec.y.names[j]}, ${spec.x.title} ${spec.x.names[i]}`, lines, left + i * cell,
      top + (j + 1) * tall + 6);
  }, () => { tip.hide(); hair.setAttribute("visibility", "hidden"); }, columns);
}
