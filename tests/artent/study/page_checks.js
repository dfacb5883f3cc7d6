// What the browser tests ask of a page: put into it once it is open.
"use strict";

const texts = () => [...document.querySelectorAll("body *")].filter((e) => {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  return own && e.getClientRects().length && !["SCRIPT", "STYLE", "OPTION", "NOSCRIPT"].includes(e.tagName);
});

// Widths, the least text, what reaches out of the window, and which labels of a chart lie on each other.
const layoutOf = () => {
  const sizes = [], clipped = [], crossed = [];
  for (const e of texts()) {
    if (e.closest(".unseen, details:not([open])")) continue;
    sizes.push([parseFloat(getComputedStyle(e).fontSize), e.textContent]);
    const box = e.getBoundingClientRect();
    if ((box.right > innerWidth + 1 || box.left < -1) && !e.closest(".scroll")) clipped.push([e.textContent, box.left, box.right]);
  }
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const labels = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]).filter(([, b]) => b.width);
    labels.forEach(([a, p], i) => labels.slice(i + 1).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 4) crossed.push([svg.getAttribute("aria-label"), a, b]); // lines of text may touch
    }));
  }
  const least = sizes.sort((a, b) => a[0] - b[0])[0];
  return { width: document.documentElement.scrollWidth, window: innerWidth, least, clipped, crossed };
};

// The least contrast of any text with what lies behind it (WCAG 2), page and charts alike: [ratio, text].
const leastContrast = () => {
  const rgb = (colour) => colour.match(/[\d.]+/g).map(Number);
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * (a[3] ?? 1) + b[i] * (1 - (a[3] ?? 1)));
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const found = texts().map((e) => {
    const behind = [];
    for (let at = e; at; at = at.parentElement) behind.unshift(rgb(getComputedStyle(at).backgroundColor));
    const ground = behind.reduce((below, above) => over(above, below), [255, 255, 255]), style = getComputedStyle(e);
    const [low, high] = [light(over(rgb(e.ownerSVGElement ? style.fill : style.color), ground)), light(ground)].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), e.textContent.slice(0, 60)];
  });
  return found.sort((a, b) => a[0] - b[0])[0];
};

// [title, {name: value}] of the tip that a chart shows; null where it shows none.
const tipOf = (selector) => {
  const tip = document.querySelector(`${selector} .tip`);
  if (!tip || tip.hidden) return null;
  const rows = [...tip.querySelectorAll("div")].map((d) => [d.querySelector(".name").textContent, d.querySelector("b")?.textContent]);
  return [tip.querySelector("i").textContent, Object.fromEntries(rows)];
};

// A line's values read off its pixels by the chart's own ticks.
const readLine = (selector, name) => {
  const svg = document.querySelector(`${selector} svg`);
  const path = [...svg.querySelectorAll("[data-series]")].find((p) => p.dataset.series === name).getAttribute("d");
  const ticks = [...svg.querySelectorAll("text.tick.end")].map((t) => [+t.textContent, +t.getAttribute("y") - 4]);
  const [[a, low], [b, high]] = [ticks[0], ticks.at(-1)];
  return path.slice(1).split("L").map((p) => a + ((+p.split(",")[1] - low) / (high - low)) * (b - a));
};

const drawnOf = (selector) => document.querySelector(`${selector} svg`).outerHTML;

const linesOf = (selector) => [...document.querySelectorAll(`${selector} [data-series]`)].map((p) => p.dataset.series);

const valueOf = (selector) => document.querySelector(selector).value;

const emptyCharts = () => [...document.querySelectorAll("[data-chart], [data-family], .plot")].filter((h) => !h.querySelector("svg")).length;
