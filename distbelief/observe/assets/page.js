"use strict";
const NAMES = JSON.parse(document.body.dataset.runs);
const hidden = new Set();

function told(value, unit) {
  if (value === null) return "?";
  if (unit === "share") return (value * 100).toFixed(2) + "%";
  if (unit === "count") return Math.round(value).toLocaleString("en");
  if (unit !== "seconds") return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 4 });
  const s = Math.round(value);
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return s + "s";
  if (s < 3600) return Math.floor(s / 60) + "m" + two(s % 60) + "s";
  return Math.floor(s / 3600) + "h" + two(Math.floor((s % 3600) / 60)) + "m";
}

function nearest(points, x) {
  let best = points[0];
  for (const p of points) if (Math.abs(p[0] - x) < Math.abs(best[0] - x)) best = p;
  return best;
}

for (const figure of document.querySelectorAll("figure[data-plot]")) {
  const plot = JSON.parse(figure.dataset.plot);
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const [low, high, begin, end] = plot.x;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  figure.append(tip);

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const x = low + ((at - begin) / (end - begin)) * (high - low);
    const lines = plot.lines.filter((line) => !hidden.has(line.run));
    tip.hidden = at < begin || at > end || !lines.length;
    cursor.style.visibility = tip.hidden ? "hidden" : "visible";
    if (tip.hidden) return;
    tip.replaceChildren();
    tip.append(told(Math.max(0, x), plot.xUnit));
    for (const line of lines.slice(0, 12)) {
      const row = document.createElement("div");
      const key = document.createElement("span");
      key.className = "run-" + line.run;
      key.textContent = "\u25cf ";
      const run = NAMES.length > 1 ? NAMES[line.run] + " " : "";
      row.append(key, run + line.name + " " + told(nearest(line.points, x)[1], plot.yUnit));
      tip.append(row);
    }
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    const room = figure.clientWidth - tip.offsetWidth - 8;
    const left = event.clientX - figure.getBoundingClientRect().left;
    tip.style.left = Math.max(8, left + 14 < room ? left + 14 : left - tip.offsetWidth - 14) + "px";
    tip.style.top = svg.offsetTop + 8 + "px";
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.style.visibility = "hidden";
  });
}

for (const button of document.querySelectorAll("button[data-run]")) {
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run);
    const hide = !hidden.has(run);
    if (hide) hidden.add(run);
    else hidden.delete(run);
    button.setAttribute("aria-pressed", String(!hide));
    for (const part of document.querySelectorAll(".run.run-" + run)) part.style.display = hide ? "none" : "";
  });
}
document.body.dataset.ready = "yes";
