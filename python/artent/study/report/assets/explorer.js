// The explorer of profiles: any matrix, layer (or the mean over layers), method, step and seed, with the nulls of its shape.
"use strict";

const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;

const meanRow = (rows) => rows[0].map((_, i) => mean(rows.map((row) => row[i])));

function explorer(root, data) {
  const pick = Object.fromEntries([...root.querySelectorAll("[data-control]")].map((each) => [each.dataset.control, each]));
  const chart = root.querySelector(".plot"), table = root.querySelector("tbody"), told = root.querySelector("output");

  // What is chosen of one method: its profiles by seed, each the mean over the chosen layers, and what they are judged by.
  const chosen = (method, at) => {
    const layers = pick.layer.value === "mean" ? data.layers : [pick.layer.value];
    const own = layers.map((layer) => data.modules[`${pick.target.value}|${layer}`]).filter(Boolean);
    const mine = own.map((each) => ({ cut: each.cut, ...each.methods[method.key] })).filter((each) => each.steps?.[at]);
    if (!mine.length) return null;
    const seeds = mine[0].seeds.filter((seed) => pick.seed.value === "all" || String(seed) === pick.seed.value);
    const rows = seeds.map((seed) => mine.map((each) => each.steps[at][each.seeds.indexOf(seed)]).filter(Boolean));
    if (!rows.flat().length) return null; // a seed that this method lacks
    const nulls = mine.map((each) => ({ ...data.nulls[each.null], haar: each.haar }));
    const last = at === data.steps.length - 1;
    return {
      seeds, cut: mine[0].cut, rank: mine[0].rank,
      profiles: rows.filter((each) => each.length).map(meanRow),
      depth: mean(rows.flat().map((row) => Math.max(...row) - row[mine[0].cut - 1])),
      entropy: mean(rows.flat().map((row) => row[mine[0].cut - 1])),
      effective: mean(rows.flat().map((row) => Math.exp(row[mine[0].cut - 1]))),
      randomDepth: nulls[0].gaussian ? mean(nulls.map((null_) =>
        Math.max(...null_.gaussian) - null_.gaussian[mine[0].cut - 1])) : null,
      nulls: Object.fromEntries(["bound", "line", "gaussian", "spread", "haar"].map((key) => [
        key, nulls.every((null_) => null_[key]) && (key !== "haar" || last) ? meanRow(nulls.map((null_) => null_[key])) : null,
      ])),
    };
  };

  const on = (values) => values.map((v, i) => [i + 1, v]);

  const single = (method, at, now) => {
    const faint = data.steps.slice(0, at).map((_, before) => chosen(method, before)).filter(Boolean)
      .map((then) => ({ name: "", color: method.color, faint: true, width: 1.3, points: on(meanRow(then.profiles)) }));
    const nulls = data.nullStyles.filter((style) => now.nulls[style.key]).map((style) => {
      const values = now.nulls[style.key], spread = style.key === "gaussian" && now.nulls.spread;
      return { ...style, points: on(values), ...(spread ? { band: values.map((v, i) => [i + 1, v - 2 * spread[i],
        v + 2 * spread[i]]) } : {}) };
    });
    const seeds = now.profiles.map((row, i) => ({ name: `seed ${now.seeds[i]}`, color: method.color, points: on(row),
      width: i ? 1.6 : 2.4 }));
    return [...faint, ...nulls, ...seeds];
  };

  const redraw = () => {
    const at = +pick.step.value;
    told.textContent = `step ${data.steps[at]}`;
    const one = data.methods.find((method) => method.key === pick.method.value);
    const seen = data.methods.filter((method) => !one || method === one)
      .map((method) => [method, chosen(method, at)]).filter(([, now]) => now);
    const series = one ? (seen.length ? single(one, at, seen[0][1]) : [])
      : seen.map(([method, now]) => ({ name: method.label, color: method.color, dash: method.dash,
        marker: method.marker, points: on(meanRow(now.profiles)) }));
    const where = pick.layer.value === "mean" ? "mean over layers" : `layer ${pick.layer.value}`;
    root.querySelector(".legend")?.remove();
    draw(chart, {
      type: "lines", height: 380, label: `Entropy at every bond of the update of ${pick.target.value}, ${where}, step ${data.steps[at]}.`,
      x: { title: "bond l", short: "bond" }, y: { title: `S(l), nats: ${pick.target.value}, ${where}`, min: 0, digits: 3 },
      marks: seen.length ? [{ x: seen[0][1].cut, label: "row|column cut" }] : [], series,
    });
    legend(chart.parentNode, groupOf(chart.id), entriesOf({ series }));
    table.replaceChildren();
    for (const [method, now] of seen) {
      const row = htmlNode("tr", {}, table), heads = [...root.querySelectorAll("thead th")].slice(1);
      htmlNode("th", { scope: "row" }, row, method.label);
      const used = `${format(now.effective, 1)}${now.rank ? ` of ${now.rank}` : ""}`;
      const values = [format(now.entropy, 2), used, format(now.depth, 2), format(now.randomDepth, 2)];
      values.forEach((value, i) => htmlNode("td", { "data-head": heads[i].textContent }, row, value));
    }
  };
  for (const control of Object.values(pick)) control.addEventListener("input", redraw);
  redraw();
}

const data = JSON.parse(document.getElementById("data").textContent);
placeCharts(data);
for (const root of document.querySelectorAll("[data-explorer]")) explorer(root, data.explorer);
