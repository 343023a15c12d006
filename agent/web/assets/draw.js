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

// spark draws the last minutes of one measurement; gaps stay gaps, and the full
// height means at least a given value, so that noise looks like noise.
function spark(values, target, least) {
  const seen = values.filter(known);
  const s = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (seen.length < 2) return s;
  const top = Math.max(...seen, least, target && Math.max(...seen) > target * 0.5 ? target : 0);
  const x = (i) => (98 * i / (values.length - 1)).toFixed(1), y = (v) => (28 - 25 * v / top).toFixed(1);
  let line = "", area = "", from = -1;
  const close = (to) => { if (from >= 0) area += "L" + x(to) + " 29L" + x(from) + " 29Z"; from = -1; };
  values.forEach((v, i) => {
    if (!known(v)) return close(i - 1);
    const d = (from < 0 ? "M" : "L") + x(i) + " " + y(v);
    line += d;
    area += d;
    if (from < 0) from = i;
  });
  close(values.length - 1);
  s.append(svg("path", { class: "area", d: area }), svg("path", { d: line }));
  if (target && target <= top) s.append(svg("path", { class: "target", d: "M0 " + y(target) + "L100 " + y(target) }));
  const last = values[values.length - 1];
  if (known(last)) s.append(svg("path", { class: "end", d: "M" + x(values.length - 1) + " " + y(last) + "h0" }));
  return s;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

// marks draws a line at each scaling step, and one across at the target.
function marks(steps, target) {
  return (u) => {
    const c = u.ctx, b = u.bbox, r = devicePixelRatio, at = target();
    c.save();
    const y = at ? u.valToPos(at, "y", true) : -1;
    if (y >= b.top && y <= b.top + b.height) {
      c.strokeStyle = color("bad");
      c.globalAlpha = 0.6;
      c.lineWidth = r;
      c.setLineDash([3 * r, 3 * r]);
      c.beginPath(); c.moveTo(b.left, y); c.lineTo(b.left + b.width, y); c.stroke();
      c.globalAlpha = 1;
    }
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
  for (const line of spec.lines) {
    series.push({ label: line.label, stroke: color(line.color), width: 2, points: { show: false }, spanGaps: false, paths: spec.steps ? uPlot.paths.stepped({ align: 1 }) : undefined });
  }
  const top = (max) => Math.max(spec.least, (max || 0) * 1.1, spec.line() && (max || 0) > spec.line() * 0.5 ? spec.line() * 1.05 : 0);
  return new uPlot({
    width: Math.max(240, host.clientWidth), height: 190, series, legend: { show: false },
    tzDate: (ts) => uPlot.tzDate(new Date(ts * 1000), "Etc/UTC"),
    cursor: { sync: { key: "service" }, drag: { x: false, y: false }, points: { show: false } },
    scales: {
      x: { time: true },
      y: { range: (u, min, max) => [0, top(max)] },
      traffic: { range: (u, min, max) => [0, Math.max(4, (max || 0) * 1.1)] },
    },
    axes: [
      { ...axis, size: 34, values: [[86400, "{D} {MMM}"], [3600, "{HH}:{mm}"], [60, "{HH}:{mm}"], [1, "{HH}:{mm}:{ss}"]].map(([incr, f]) => [incr, f, null, null, null, null, null, null, 1]) },
      { ...axis, size: 58, values: (u, vs) => vs.map(spec.show) },
      { ...axis, scale: "traffic", side: 1, size: 44, grid: { show: false }, values: (u, vs) => vs.map(show.num) },
    ],
    hooks: { draw: [marks(steps, spec.line)], setCursor: [(u) => spec.hover(u.cursor.idx)] },
  }, spec.data(), host);
}
