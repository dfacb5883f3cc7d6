// Fills the page from the JSON it carries: fixed charts by id, and the explorer of profiles by module and step.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

function place(holder, spec) {
  holder.classList.add("chart");
  draw(holder, spec);
  holder.drawnAt = holder.clientWidth;
  resized.observe(holder);
}

for (const holder of document.querySelectorAll("[data-chart]")) {
  const spec = data.charts[holder.dataset.chart];
  if (spec) place(holder, spec);
  else holder.closest("figure").remove(); // a single seed has no seeds to compare
}

const module = document.getElementById("module"), step = document.getElementById("step"), stepTold = document.getElementById("step-told");

function profileSpec(method, own, seen, cut, top) {
  const nulls = own.nulls;
  const on = (values) => values.map((v, i) => [i + 1, v]);
  const earlier = seen.slice(0, -1).map((p) => ({ name: "", color: method.color, faint: true, width: 1.5, points: on(p.entropy[0]) }));
  const seeds = seen.at(-1).entropy.map((entropy, i) => ({
    name: `seed ${own.seeds[i]}`, color: method.color, width: i ? 1.5 : 2.5, points: on(entropy),
  }));
  const lines = [
    { name: "rank bound", color: "ink", width: 1, points: on(nulls.bound) },
    { name: nulls.line_name, color: "null", dash: "7 4", width: 1.5, points: on(nulls.line) },
    { name: nulls.drawn, color: "null", width: 1, points: on(nulls.gaussian) },
  ];
  if (seen.at(-1).haar) seeds.push({ name: "Haar null", color: "other", dash: "2 4", width: 2, points: on(seen.at(-1).haar) });
  return {
    label: `Entanglement profile of ${module.value}, ${method.label}: entropy in nats at every bond, beside its nulls.`,
    height: 280, x: { title: "bond l", short: "bond" }, y: { title: "S(l), nats", min: 0, max: top },
    marks: [{ x: cut, label: "row | column" }], series: [...earlier, ...lines, ...seeds],
    bands: [{ color: "null", points: nulls.gaussian_band.map(([low, high], i) => [i + 1, low, high]) }],
  };
}

function drawProfiles() {
  const chosen = data.profiles[module.value], at = +step.value;
  stepTold.textContent = `step ${data.steps[at]}`;
  const highs = Object.values(chosen.methods).flatMap((m) => [...m.nulls.bound, ...m.steps.flatMap((s) => (s ? s.entropy.flat() : []))]);
  for (const method of data.methods) {
    const panel = document.getElementById(`profile-${method.key}`), own = chosen.methods[method.key];
    const seen = own.steps.slice(0, at + 1).filter(Boolean), told = panel.querySelector(".big"), holder = panel.querySelector(".plot");
    if (!seen.length) {
      told.innerHTML = "<small>no update yet at this step</small>";
      panel.querySelector(".valley").textContent = "";
      holder.spec = null;
      holder.replaceChildren();
      continue;
    }
    const last = seen.at(-1);
    told.innerHTML = `${last.effective.toFixed(1)} <small>of ${own.rank} used</small>`;
    panel.querySelector(".valley").textContent = `valley ${last.depth.toFixed(2)} nats, ${own.nulls.drawn} ${own.nulls.depth.toFixed(2)}`;
    place(holder, profileSpec(method, own, seen, chosen.cut, 1.06 * Math.max(...highs)));
  }
}

for (const control of [module, step]) control.addEventListener("input", drawProfiles);
drawProfiles();
