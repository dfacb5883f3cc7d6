// Puts charts where the page asks for them: single charts by id, families of charts with a control for each choice,
// and legends whose entries switch lines on and off, for one chart or for a group of them.
"use strict";

const KINDS = { lines: drawLines, dots: drawDots, heat: drawHeat };
const groups = new Map();

const groupOf = (name) => {
  if (!groups.has(name)) groups.set(name, { off: new Set(), holders: new Set() });
  return groups.get(name);
};

function draw(holder, spec) {
  const group = groupOf(holder.dataset.group || holder.dataset.chart || holder.dataset.family || holder.id);
  holder.spec = spec;
  holder.classList.add("chart");
  holder.drawnAt = holder.clientWidth;
  KINDS[spec.type](holder, spec, group.off);
  if (!group.holders.has(holder)) resized.observe(holder);
  group.holders.add(holder);
}

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.spec && target.drawnAt !== target.clientWidth) draw(target, target.spec);
});

// Entries of a legend: [{tag, label?, color, dash?, width?, marker?, off?}]. `title` names a part of them, such as nulls.
function legend(holder, group, entries, title) {
  const list = htmlNode("ul", { class: title ? "legend pick" : "legend", "aria-label": title || "Lines" }, holder);
  if (title) htmlNode("li", { class: "legend-title" }, list, title);
  for (const entry of entries) {
    if (entry.off) group.off.add(entry.tag);
    const button = htmlNode("button", { type: "button", "aria-pressed": !group.off.has(entry.tag),
      "data-tag": entry.tag }, htmlNode("li", {}, list));
    const key = svgNode("svg", { "aria-hidden": true, width: 26, height: 10, viewBox: "0 0 26 10" }, button),
      style = `stroke:${paint(entry.color)}`;
    if (entry.width !== 0) svgNode("line", { x1: 0, x2: 26, y1: 5, y2: 5,
      style: `${style};stroke-width:${entry.width ?? 2};stroke-dasharray:${entry.dash || "none"}` }, key);
    if (entry.marker) markers(entry.marker, [[13, 5]], 3.4, `fill:${paint(entry.color)}`, key);
    htmlNode("span", {}, button, entry.label || entry.tag);
    button.addEventListener("click", () => {
      const hidden = group.off.delete(entry.tag) ? false : (group.off.add(entry.tag), true);
      button.setAttribute("aria-pressed", !hidden);
      for (const each of group.holders) draw(each, each.spec);
    });
  }
  return list;
}

const below = (holder) => {
  const place = htmlNode("div", {});
  holder.after(place);
  return place;
};

const entriesOf = (spec) => {
  const entries = new Map();
  for (const s of spec.series || []) if (s.name && !entries.has(s.name)) entries.set(s.name, { ...s, tag: s.name });
  return [...entries.values()];
};

// {controls: [{key, label, options: [[value, words]]}], charts: {"value|value": spec}}: a select for every control.
// Choices that no chart stands for are greyed out; the first that goes with the rest is taken.
function family(holder, made) {
  const row = htmlNode("div", { class: "controls" }), picks = [];
  holder.before(row);
  const keyOf = () => picks.map((pick) => pick.value).join("|");
  const redraw = (changed) => {
    if (!made.charts[keyOf()]) {
      const kept = picks.indexOf(changed), value = changed?.value;
      const near = Object.keys(made.charts).find((key) => kept < 0 || key.split("|")[kept] === value);
      near.split("|").forEach((each, i) => { picks[i].value = each; });
    }
    draw(holder, made.charts[keyOf()]);
  };
  for (const control of made.controls) {
    const label = htmlNode("label", {}, row, `${control.label} `);
    const pick = htmlNode("select", { "data-control": control.key }, label);
    for (const [value, words] of control.options) htmlNode("option", { value }, pick).textContent = words;
    label.hidden = control.options.length < 2;
    pick.addEventListener("input", () => redraw(pick));
    picks.push(pick);
  }
  row.hidden = picks.every((pick) => pick.options.length < 2);
  const entries = made.legend || entriesOf({ series: Object.values(made.charts).filter((c) => c.legend).flatMap((c) => c.series) });
  if (entries.length) legend(below(holder), groupOf(holder.dataset.family), entries);
  redraw(picks[0]);
}

function placeCharts(data) {
  for (const holder of document.querySelectorAll("[data-legend]")) {
    for (const part of data.legends[holder.dataset.legend]) legend(holder, groupOf(holder.dataset.legend), part.entries,
      part.title);
  }
  for (const holder of document.querySelectorAll("[data-chart]")) {
    const spec = data.charts[holder.dataset.chart];
    if (spec.legend) legend(below(holder), groupOf(holder.dataset.chart), entriesOf(spec));
    draw(holder, spec);
  }
  for (const holder of document.querySelectorAll("[data-family]")) family(holder, data.families[holder.dataset.family]);
}
