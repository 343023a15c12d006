"use strict";
// One page, some views, chosen by the part of the address after #. The agent
// sends the newest state again and again; a view is made once and then updated.

const main = document.getElementById("main");
let page = null;      // the newest state with a leader's word in it
let local = null;     // what this machine alone says, while nobody leads
let lost = 0;         // since when this machine does not answer
let heard = 0;        // when it answered last
let view = null;      // {name, update()}

const service = (name) => (page.status.services || []).find((s) => s.name === name);
const verdictOf = (name) => (page.verdicts || []).find((v) => v.service === name);
const kindOf = (e) => ({
  up: "adds a machine", up_done: "machine added", up_failed: "adding failed", up_abandoned: "adding given up",
  down: "removes a machine", down_done: "machine removed", down_failed: "removing failed", down_abandoned: "removing given up",
  leader: "new leader", scale: "a person asks for a size", scale_done: "size reached", scale_given_up: "size given up", pause: "paused", resume: "resumed",
  pin: "new primary", admit: "admitted", revoke: "admission taken back", alert: "alert", alert_resolved: "alert over", wait: "waits", go_on: "goes on",
  locks_known: "locks known", silence: "silenced", unsilence: "silence ended", step: "step",
}[e.kind] || e.kind.replaceAll("_", " "));

// What a verdict's code means in a word or two, and how it feels.
const moods = {
  steady: ["Steady", "good"], baseline: ["At rest", "good"], pinned: ["At rest", "good"], last_ready: ["At rest", "good"], no_victim: ["At rest", "good"],
  projected_overload: ["Busy enough", "good"], cooldown: ["Cooling down", "calm"], operation_in_flight: ["Working", "calm"], deploy_in_progress: ["Deploy", "calm"],
  manual: ["As asked", "calm"], mode: ["Held by its mode", "calm"], off: ["Off", "calm"], paused: ["Paused", "warn"], owner: ["Scaled elsewhere", "warn"],
  data_missing: ["Data missing", "warn"], api_down: ["No word from the API", "warn"], cap: ["At its cap", "warn"], budget: ["Budget spent", "warn"],
  breaker: ["Waiting after failures", "warn"], no_improvement: ["More does not help", "warn"], no_quorum: ["No quorum", "bad"],
};

function mood(v) {
  if (!v) return ["No verdict yet", "calm"];
  const [word, tone] = v.verdict === "up" ? ["Adding a machine", "up"] : v.verdict === "down" ? ["Removing a machine", "down"] : moods[v.reason.code] || [v.reason.code.replaceAll("_", " "), "calm"];
  return [word, v.page ? "bad" : tone];
}

function chip(v) {
  const [word, tone] = mood(v);
  return el("span", { class: "chip " + tone }, word);
}

function words(s) {
  const v = verdictOf(s.name), text = v ? v.reason.text : s.reason || "";
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function size(s) {
  const started = known(s.started) ? s.started : "?";
  let t = started + " of at most " + s.max;
  if (known(s.ready) && s.ready !== s.started) t += ", " + s.ready + " ready";
  if (s.unknown) t += ", " + s.unknown + " unknown";
  return t;
}

function row(cells, cls) {
  return el("tr", {}, cells.filter(Boolean).map(([k, v, c]) => el("td", { "data-k": k, class: (c || "") + (v === "–" ? " blank" : "") }, v)));
}

function table(heads, rows, none) {
  if (!rows.length) return el("p", { class: "none" }, none);
  return el("div", { class: "scroll" }, el("table", { class: "stack" },
    el("thead", {}, el("tr", {}, heads.filter(Boolean).map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, rows)));
}

// fill replaces what is in a box, but leaves the focus where it was.
function fill(box, ...kids) {
  const href = box.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  box.replaceChildren(...kids.flat());
  if (href) [...box.querySelectorAll("a")].find((a) => a.getAttribute("href") === href)?.focus();
}

// ---- services

const firing = () => ((page.alerts || {}).alerts || []).filter((a) => a.phase === "firing" && !a.silenced);

// headline says in one sentence whether anybody need look any further.
function headline() {
  const all = page.status.services || [], loud = firing();
  const odd = all.filter((s) => ["warn", "bad"].includes(mood(verdictOf(s.name))[1])).map((s) => s.name);
  const machines = (page.status.machines || []).filter((m) => m.state === "started"), ready = machines.filter((m) => m.ready).length;
  const count = machines.length + (machines.length === 1 ? " machine runs" : " machines run") + (ready === machines.length ? ", all ready." : ", " + ready + " ready.");
  const [tone, text] = loud.length ? [loud.some((a) => a.severity === "page") ? "bad" : "warn", (loud.length === 1 ? "An alert fires: " : loud.length + " alerts fire: ") + loud.map((a) => a.rule + (a.service ? " of " + a.service : "")).join(", ") + "."]
    : odd.length ? ["warn", (odd.length === 1 ? "One service is" : odd.length + " services are") + " held up: " + odd.join(", ") + "."]
      : ["good", all.length === 1 ? "The service is as it should be." : "All " + all.length + " services are as they should be."];
  return el("p", { class: "headline " + tone }, el("span", { class: "dot " + tone }), loud.length ? el("a", { href: "#/alerts" }, text) : text, " ", el("span", { class: "quiet" }, count));
}

function overview() {
  const top = el("div"), cards = el("div", { class: "cards" });
  fill(main, el("h1", {}, "Services"), top, cards, el("p", { class: "legend" }, "Lines show the last 15 minutes; the dashed one is the target."));
  return () => { fill(top, headline()); fill(cards, (page.status.services || []).map(card)); };
}

// tiles are what a card shows: title, newest value, column, and the least that the full height of its line means.
const tiles = [
  ["p95", (s) => s.p95_ms, "p95_seconds", show.ms, 0.1], ["Errors", (s) => s.error_rate, "error_ratio", show.pct, 0.02],
  ["Queue", (s) => s.queue, "queue", show.num, 5], ["CPU", (s) => s.cpu, "cpu_ratio", show.pct, 1],
  ["Requests/s", (s, newest) => newest.requests_per_second, "requests_per_second", show.num, 1], ["Memory", (s, newest) => newest.memory_ratio, "memory_ratio", show.pct, 1],
];

function card(s) {
  const rows = (page.sparks && page.sparks[s.name] && page.sparks[s.name].rows) || [];
  const target = (page.targets || {})[s.name] || {}, newest = rows[rows.length - 1] || {}, v = verdictOf(s.name);
  const shown = tiles.map(([title, value, col, text, least]) => {
    const x = value(s, newest), seen = rows.some((r) => col === "requests_per_second" ? r[col] > 0 : known(r[col]));
    if (!seen && (!known(x) || col === "requests_per_second")) return null;
    const over = target[col] && known(x) && (col === "p95_seconds" ? x / 1000 : x) > target[col];
    return el("div", { class: "tile" }, el("div", { class: "k" }, title), el("div", { class: "v" + (over ? " warn" : "") }, text(x), over ? el("span", { class: "hidden" }, ", over the target") : null),
      spark(rows.map((r) => r[col]), target[col], least));
  });
  const tags = [s.mode !== "auto" ? s.mode : null, s.paused_until ? "until " + show.clock(s.paused_until) : null].filter(Boolean).map((t) => el("span", { class: "tag" }, t));
  return el("a", { class: "card", href: "#/service/" + encodeURIComponent(s.name) },
    el("h2", {}, s.name, el("small", {}, size(s))), el("p", { class: "state" }, chip(v), tags), el("p", { class: "verdict" }, words(s)),
    shown.some(Boolean) ? el("div", { class: "tiles" }, shown) : el("p", { class: "quiet" }, "Nothing is measured yet."));
}

// ---- one service

const ranges = { "15 min": ["15m", true], "1 h": ["1h", false], "6 h": ["6h", false], "24 h": ["24h", false] };
let range = "15 min";

function one(name) {
  const head = el("div"), buttons = el("div", { class: "range", role: "group", "aria-label": "Time shown" });
  const charts = el("div", { class: "charts" }), why = el("div"), blank = el("p", { class: "none", hidden: true }, "Nothing was measured in this time.");
  fill(main, el("div", { class: "row" }, head, buttons), blank, charts,
    el("p", { class: "legend" }, el("span", { class: "t" }, "■ requests/s, right scale"), el("span", { class: "u" }, "▲ machine added"),
      el("span", { class: "d" }, "▼ machine removed"), el("span", {}, "dashed: target, or cap"), el("span", {}, "times are UTC")), why);
  for (const r of Object.keys(ranges)) {
    const b = el("button", { type: "button", "aria-pressed": String(r === range) }, r);
    b.addEventListener("click", () => {
      range = r;
      for (const o of buttons.children) o.setAttribute("aria-pressed", String(o.textContent === r));
      load();
    });
    buttons.append(b);
  }
  let hist = { rows: [], events: [] }, plots = [], last = 0, busy = false, gone = false;
  const col = (k) => hist.rows.map((r) => known(r[k]) ? r[k] : null);
  const steps = () => (hist.events || []).filter((e) => e.kind === "up_done" || e.kind === "down_done")
    .map((e) => ({ t: Date.parse(e.at) / 1000, up: e.kind === "up_done" }));
  const specs = [
    { title: "p95 latency", unit: show.s, least: 0.2, target: "p95_seconds", lines: [{ label: "p95", key: "p95_seconds", color: "mark" }] },
    { title: "Errors", unit: show.pct, least: 0.02, target: "error_ratio", lines: [{ label: "errors", key: "error_ratio", color: "bad" }] },
    { title: "Queue", unit: show.num, least: 5, target: "queue", lines: [{ label: "queue", key: "queue", color: "mark" }] },
    { title: "CPU and memory", unit: show.pct, least: 1, lines: [{ label: "CPU", key: "cpu_ratio", color: "mark" }, { label: "memory", key: "memory_ratio", color: "down" }] },
    { title: "Machines", unit: show.num, least: 3, steps: true, lines: [{ label: "heard", key: "heard", color: "mark" }] },
  ];
  for (const s of specs) {
    s.data = () => [hist.rows.map((r) => Date.parse(r.at) / 1000), col("requests_per_second"), ...s.lines.map((l) => col(l.key))];
    s.show = s.unit;
    s.line = () => s.steps ? (service(name) || {}).max : ((page.targets || {})[name] || {})[s.target];
    s.now = el("span");
    s.hover = (i) => {
      const at = known(i) ? i : hist.rows.length - 1, r = hist.rows[at];
      s.now.textContent = !r ? "" : (known(i) ? show.clock(r.at) + "  " : "") + s.lines.map((l) => (s.lines.length > 1 ? l.label + " " : "") + s.unit(r[l.key])).join(", ") +
        (known(i) ? " at " + show.num(r.requests_per_second) + " req/s" : "");
    };
    s.host = el("div");
    s.box = el("section", { class: "chart", "aria-label": s.title }, el("h2", {}, s.title, s.now), s.host);
    charts.append(s.box);
  }
  const build = () => {
    for (const p of plots) p.destroy();
    plots = specs.map((s) => gauge(s.host, s, steps));
    for (const s of specs) s.hover(null);
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", build);
  const sizes = new ResizeObserver(() => plots.forEach((p, i) => p.setSize({ width: Math.max(240, specs[i].host.clientWidth), height: 190 })));
  sizes.observe(charts);

  async function load() {
    if (busy) return;
    busy = true;
    const want = range;
    try {
      const [since, fine] = ranges[want];
      const r = await fetch("/v1/history?service=" + encodeURIComponent(name) + "&since=" + since + (fine ? "&grain=sample" : ""));
      if (r.ok && !gone) {
        hist = await r.json();
        last = Date.now();
        for (const s of specs) s.box.hidden = !s.lines.some((l) => hist.rows.some((r) => known(r[l.key])));
        blank.hidden = hist.rows.length > 0;
        charts.nextSibling.hidden = !blank.hidden;
        if (!plots.length) build();
        plots.forEach((p, i) => p.setData(specs[i].data()));
        specs.forEach((s, i) => { if (!known(plots[i].cursor.idx)) s.hover(null); });
      }
    } catch { /* the banner says that nobody answers */ }
    busy = false;
    if (want !== range && !gone) load();
  }

  const update = () => {
    const s = service(name);
    if (!s) { fill(head, el("h1", {}, name), el("p", {}, "There is no such service in mesh.toml.")); return; }
    if (Date.now() - last > (ranges[range][1] ? 2500 : 15000)) load();
    fill(head, el("h1", {}, name, " ", chip(verdictOf(name))), el("p", { class: "verdict" }, words(s)), el("p", { class: "quiet" }, "Machines: " + size(s) + ", baseline " + s.baseline));
    fill(why, explain(name));
  };
  update.end = () => { gone = true; sizes.disconnect(); dark.removeEventListener("change", build); plots.forEach((p) => p.destroy()); };
  return update;
}

function explain(name) {
  const v = verdictOf(name);
  const out = [];
  if (v) {
    const value = (r) => {
      const m = r.rule.split(" ")[0];
      return !known(r.value) ? "not known" : m === "p95" ? show.s(r.value) : m === "queue" ? show.num(r.value) : show.pct(r.value);
    };
    out.push(el("h2", {}, "Why"), table(["Rule", "For", "Now", "Holds", "Since"], (v.rules || []).map((r) => row([
      ["Rule", r.rule, "head"], ["For", r.for === "up" ? "one more" : "one fewer"], ["Now", value(r)],
      ["Holds", r.holds ? "yes" : "no", r.holds && r.for === "up" ? "warn" : ""], ["Since", r.since ? show.clock(r.since) : "–"],
    ])), "This service has no rules."));
    const blocks = (v.guards || []).filter((g) => g.blocks);
    if (blocks.length) out.push(el("h2", {}, "What holds it back"), el("ul", { class: "notes" }, blocks.map((g) => el("li", {}, g.code.replaceAll("_", " ") + ": " + g.detail))));
  }
  out.push(el("h2", {}, "Machines"), machineTable((page.status.machines || []).filter((m) => m.service === name), true));
  const es = (page.events || []).filter((e) => e.service === name && e.kind !== "step").slice(-12).reverse();
  out.push(el("h2", {}, "Events"), eventTable(es, true));
  return out;
}

// ---- address, live state

function route() {
  const at = decodeURIComponent(location.hash.slice(1)) || "/";
  if (!page) return;
  if (view && view.name !== at) { view.update.end?.(); view = null; }
  if (!view) {
    const make = at.startsWith("/service/") ? () => one(at.slice(9)) : { "/machines": machines, "/events": events, "/jobs": jobs, "/alerts": alerts, "/mesh": mesh }[at] || overview;
    view = { name: at, update: make() };
    const tab = at.startsWith("/service/") ? "#/" : "#" + at;
    for (const a of document.querySelectorAll("nav a")) a.getAttribute("href") === tab ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current");
    document.title = (at === "/" ? "" : at.split("/").pop() + " – ") + page.status.mesh + " – flymesh";
  }
  view.update();
}

function frame() {
  const banner = document.getElementById("banner"), pulse = document.getElementById("pulse");
  let text = "";
  if (lost) text = "This machine does not answer since " + show.age(Date.now() - lost) + "; what is shown is old. Trying again.";
  else if (local) text = (local.warnings && local.warnings[0] || "Nobody leads the mesh") + ". " + (page && page.status.leader ? "What is shown is from " + show.clock(page.status.at) + " UTC." : "");
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
  if (!page) return;
  document.getElementById("mesh").textContent = page.status.mesh;
  const loud = firing().length, count = document.getElementById("alert-count");
  count.hidden = !loud;
  count.textContent = loud;
  count.setAttribute("aria-label", loud + " firing");
  const lead = page.status.leader ? "led by " + page.status.leader.machine : "no leader";
  const line = lost || local ? "" : lead + ", epoch " + page.status.epoch + ", " + show.clock(page.status.at) + " UTC";
  if (pulse.textContent !== line) pulse.textContent = line;
}

const live = new EventSource("/live");
live.onmessage = (m) => {
  lost = 0;
  heard = Date.now();
  const p = JSON.parse(m.data);
  if (p && p.status && (p.status.leader || !page)) page = p;
  local = p && p.status && !p.status.leader ? p.status : null;
  frame();
  route();
};
live.onerror = () => { lost = lost || heard || Date.now(); frame(); };
setInterval(() => { // a machine that is gone may not even close the connection
  if (heard && Date.now() - heard > 8000) { lost = lost || heard; }
  if (lost) frame();
}, 1000);
addEventListener("hashchange", () => { route(); main.focus({ preventScroll: true }); scrollTo(0, 0); });
