// Values under the pointer or at the arrow keys: one way for every kind of chart.
"use strict";

function tipIn(holder) {
  const tip = htmlNode("div", { class: "tip", "aria-live": "polite" }, holder);
  tip.hidden = true;
  return {
    hide: () => { tip.hidden = true; },
    tell: (title, lines, x, y) => {
      tip.replaceChildren();
      htmlNode("i", {}, tip, title);
      for (const line of lines) {
        const row = htmlNode("div", {}, tip);
        if (line.color) htmlNode("span", { class: "key", style: `background:${paint(line.color)}` }, row);
        htmlNode("span", { class: "name" }, row, line.name);
        if (line.value !== "") htmlNode("b", {}, row, line.value);
      }
      tip.hidden = false;
      const room = holder.clientWidth - tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(room, x > holder.clientWidth / 2 ? x - tip.offsetWidth - 12 : x + 12))}px`;
      tip.style.top = `${y}px`;
    },
  };
}

// Goes over `count` stops: the pointer gives one by `find` (less than 0: none), the arrows the next, Escape none.
function stepping(svg, count, find, show, hide, stride = 0) {
  let at = -1;
  const go = (to) => { at = Math.min(count - 1, Math.max(0, to)); show(at); };
  svg.addEventListener("pointermove", (event) => {
    const to = find(event);
    if (to >= 0 && to < count) go(to);
    else hide();
  });
  svg.addEventListener("pointerdown", (event) => { const to = find(event); if (to >= 0 && to < count) go(to); });
  svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || hide()); // what was tapped stays
  svg.addEventListener("blur", () => { at = -1; hide(); });
  svg.addEventListener("keydown", (event) => {
    const key = event.key, before = at < 0;
    if (key === "ArrowRight") go(before ? 0 : at + 1);
    else if (key === "ArrowLeft") go(before ? count - 1 : at - 1);
    else if (key === "ArrowDown") go(before ? 0 : at + (stride || 1));
    else if (key === "ArrowUp") go(before ? count - 1 : at - (stride || 1));
    else if (key === "Home") go(0);
    else if (key === "End") go(count - 1);
    else if (key === "Escape") { at = -1; hide(); } else return;
    event.preventDefault();
  });
}

// A crosshair at the nearest x, with the value of every series that has one there.
function followPointer(holder, svg, spec, series, { x, top, floor }) {
  const stops = [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
  if (!stops.length) return;
  const hair = svgNode("line", { y1: top, y2: floor, class: "hair", visibility: "hidden" }, svg), tip = tipIn(holder);
  const values = series.map((s) => new Map(s.points));
  const nearest = (event) => {
    const place = event.clientX - svg.getBoundingClientRect().left;
    return stops.reduce((best, s, i) => (Math.abs(x(s) - place) < Math.abs(x(stops[best]) - place) ? i : best), 0);
  };
  stepping(svg, stops.length, nearest, (at) => {
    const here = stops[at], lines = [];
    series.forEach((s, i) => values[i].has(here) && lines.push({ color: s.color, name: s.name,
      value: format(values[i].get(here), spec.y.digits ?? 3) }));
    for (const [key, value] of Object.entries({ x1: x(here), x2: x(here), visibility: "visible" })) hair.setAttribute(key, value);
    const shown = lines.slice(0, 16);
    if (lines.length > shown.length) shown.push({ name: `and ${lines.length - shown.length} more`, value: "" });
    tip.tell(`${spec.x.short || spec.x.title} ${spec.x.names?.[here] ?? format(here)}`, shown, x(here), top);
  }, () => { tip.hide(); hair.setAttribute("visibility", "hidden"); });
}
