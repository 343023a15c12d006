"use strict";
// What is drawn: small elements, sparklines, charts. Text goes in as text, never as markup.

function el(tag, attrs, ...kids) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v === true) e.setAttribute(k, "");
    else if (v !== false && v != null) e.setAttribute(k, v);
  }
  e.append(...kids.flat().filter((k) => k != null && k !== false));
  return e;
}

function svg(tag, attrs, ...kids) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  e.append(...kids);
  return e;
}

const known = (x) => x !== null && x !== undefined;
const show = {
  ms: (x) => !known(x) ? "–" : x < 1000 ? Math.round(x) + " ms" : (x / 1000).toFixed(x < 10000 ? 2 : 1) + " s",
  s: (x) => show.ms(known(x) ? x * 1000 : x),
  pct: (x) => !known(x) ? "–" : (x !== 0 && x < 0.0995 ? (100 * x).toFixed(1) : Math.round(100 * x)) + " %",
  num: (x) => !known(x) ? "–" : Number.isInteger(x) || x >= 100 ? String(Math.round(x)) : x.toFixed(1),
  age: (ms) => {
    const s = Math.max(0, Math.round(ms / 1000));
    if (s < 60) return s + " s";
    if (s < 3600) return Math.floor(s / 60) + " min";
    if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
    return Math.floor(s / 86400) + " d " + Math.floor(s % 86400 / 3600) + " h";
  },
  day: (t) => new Date(t).toISOString().slice(5, 16).replace("T", " "),
  clock: (t) => new Date(t).toISOString().slice(11, 19),
};

// spark draws the last minutes of one measurement; gaps stay gaps.
function spark(values, target) {
  const seen = values.filter(known);
  const s = svg("svg", { class: "spark", viewBox: "0 0 100 26", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (seen.length < 2) return s;
  const top = Math.max(...seen, target && Math.max(...seen) > target * 0.5 ? target : 0) || 1;
  const y = (v) => (24.5 - 23 * v / top).toFixed(1);
  let d = "", pen = false;
  values.forEach((v, i) => {
    if (!known(v)) { pen = false; return; }
    d += (pen ? "L" : "M") + (100 * i / (values.length - 1)).toFixed(1) + " " + y(v);
    pen = true;
  });
  s.append(svg("path", { d }));
  if (target && target <= top) s.append(svg("path", { class: "target", d: "M0 " + y(target) + "L100 " + y(target) }));
  return s;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

// marks draws a line at each scaling step.
function marks(steps) {
  return (u) => {
    const c = u.ctx, b = u.bbox, r = devicePixelRatio;
    c.save();
    for (const e of steps()) {
      const x = u.valToPos(e.t, "x", true);
      if (x < b.left || x > b.left + b.width) continue;
      c.strokeStyle = c.fillStyle = color(e.up ? "up" : "down");
      c.lineWidth = 1.5 * r;
      c.setLineDash([4 * r, 3 * r]);
      c.beginPath(); c.moveTo(x, b.top); c.lineTo(x, b.top + b.height); c.stroke();
      c.setLineDash([]);
      const h = 5 * r, y = b.top + (e.up ? 2 * h : 0);
      c.beginPath(); c.moveTo(x - h, y); c.lineTo(x + h, y); c.lineTo(x, e.up ? y - 2 * h : y + 2 * h); c.fill();
    }
    c.restore();
  };
}

// gauge makes one chart: measurements as lines over the traffic as an area.
function gauge(host, spec, steps) {
  const soft = color("soft"), grid = color("grid"), font = "11px system-ui, sans-serif";
  const axis = { stroke: soft, font, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
  const series = [{}, { label: "requests/s", scale: "traffic", fill: color("area"), width: 0, points: { show: false } }];
  for (const line of spec.lines) series.push({ label: line.label, stroke: color(line.color), width: 1.8, points: { show: false }, spanGaps: false });
  return new uPlot({
    width: Math.max(240, host.clientWidth), height: 190, series, legend: { show: false },
    tzDate: (ts) => uPlot.tzDate(new Date(ts * 1000), "Etc/UTC"),
    cursor: { sync: { key: "service" }, drag: { x: false, y: false }, points: { show: false } },
    scales: {
      x: { time: true },
      y: { range: (u, min, max) => [0, Math.max(spec.least, (max || 0) * 1.1)] },
      traffic: { range: (u, min, max) => [0, Math.max(4, (max || 0) * 1.1)] },
    },
    axes: [
      { ...axis, size: 34, values: [[86400, "{D} {MMM}"], [3600, "{HH}:{mm}"], [60, "{HH}:{mm}"], [1, "{HH}:{mm}:{ss}"]].map(([incr, f]) => [incr, f, null, null, null, null, null, null, 1]) },
      { ...axis, size: 58, values: (u, vs) => vs.map(spec.show) },
      { ...axis, scale: "traffic", side: 1, size: 44, grid: { show: false }, values: (u, vs) => vs.map(show.num) },
    ],
    hooks: { draw: [marks(steps)], setCursor: [(u) => spec.hover(u.cursor.idx)] },
  }, spec.data(), host);
}
