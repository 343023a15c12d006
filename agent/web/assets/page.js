"use strict";
// One page, five views, chosen by the part of the address after #. The agent
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

function tone(v) {
  if (!v) return "quiet";
  if (v.page) return "bad";
  if (v.verdict !== "hold") return "warn";
  return ["data_missing", "api_down", "cap", "no_improvement", "no_quorum", "breaker"].includes(v.reason.code) ? "warn" : "quiet";
}

function words(s) {
  const v = verdictOf(s.name);
  if (!v) return s.reason || "no verdict yet";
  const head = v.verdict === "up" ? "Adding a machine: " : v.verdict === "down" ? "Removing a machine: " : "";
  const text = head + v.reason.text;
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
  return el("tr", {}, cells.map(([k, v, c]) => el("td", { "data-k": k, class: c }, v)));
}

function table(heads, rows, none) {
  if (!rows.length) return el("p", { class: "quiet" }, none);
  return el("div", { class: "scroll" }, el("table", { class: "stack" },
    el("thead", {}, el("tr", {}, heads.map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, rows)));
}

// fill replaces what is in a box, but leaves the focus where it was.
function fill(box, ...kids) {
  const href = box.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  box.replaceChildren(...kids.flat());
  if (href) [...box.querySelectorAll("a")].find((a) => a.getAttribute("href") === href)?.focus();
}

// ---- services

function overview() {
  const cards = el("div", { class: "cards" });
  fill(main, el("h1", {}, "Services"), el("p", { class: "quiet" }, "The last 15 minutes; the dashed line is the target."), cards);
  return () => fill(cards, (page.status.services || []).map(card));
}

function card(s) {
  const rows = (page.sparks && page.sparks[s.name] && page.sparks[s.name].rows) || [];
  const target = (page.targets || {})[s.name] || {};
  const newest = rows[rows.length - 1] || {};
  const tile = (k, v, col, text) => !known(v) && !rows.some((r) => known(r[col])) ? null : el("div", { class: "tile" },
    el("div", { class: "k" }, k), el("div", { class: "v" }, text(v)), spark(rows.map((r) => r[col]), target[col]));
  const asked = rows.some((r) => r.requests_per_second > 0);
  const down = s.mode !== "auto" ? el("span", { class: "tag" }, s.mode) : null;
  const paused = s.paused_until ? el("span", { class: "tag" }, "paused until " + show.clock(s.paused_until)) : null;
  return el("a", { class: "card", href: "#/service/" + encodeURIComponent(s.name) },
    el("h2", {}, s.name, el("small", {}, size(s))),
    el("p", { class: "verdict " + tone(verdictOf(s.name)) }, words(s), " ", down, " ", paused),
    el("div", { class: "tiles" },
      tile("p95", s.p95_ms, "p95_seconds", show.ms),
      tile("Errors", s.error_rate, "error_ratio", show.pct),
      tile("Queue", s.queue, "queue", show.num),
      tile("CPU", s.cpu, "cpu_ratio", show.pct),
      asked ? tile("Requests/s", newest.requests_per_second, "requests_per_second", show.num) : null,
      tile("Memory", newest.memory_ratio, "memory_ratio", show.pct)));
}

// ---- one service

const ranges = { "15 min": ["15m", true], "1 h": ["1h", false], "6 h": ["6h", false], "24 h": ["24h", false] };
let range = "15 min";

function one(name) {
  const head = el("div"), buttons = el("div", { class: "range", role: "group", "aria-label": "Time shown" });
  const charts = el("div", { class: "charts" }), why = el("div");
  fill(main, el("div", { class: "row" }, head, buttons), charts,
    el("p", { class: "legend" }, el("span", { class: "t" }, "■ traffic"), el("span", { class: "u" }, "▲ machine added"),
      el("span", { class: "d" }, "▼ machine removed"), el("span", {}, "times are UTC")), why);
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
    { title: "p95 latency", unit: show.s, least: 0.2, lines: [{ label: "p95", key: "p95_seconds", color: "mark" }] },
    { title: "Errors", unit: show.pct, least: 0.02, lines: [{ label: "errors", key: "error_ratio", color: "bad" }] },
    { title: "Queue", unit: show.num, least: 5, lines: [{ label: "queue", key: "queue", color: "mark" }] },
    { title: "CPU and memory", unit: show.pct, least: 1, lines: [{ label: "CPU", key: "cpu_ratio", color: "mark" }, { label: "memory", key: "memory_ratio", color: "down" }] },
    { title: "Machines", unit: show.num, least: 3, lines: [{ label: "heard", key: "heard", color: "mark" }] },
  ];
  for (const s of specs) {
    s.data = () => [hist.rows.map((r) => Date.parse(r.at) / 1000), col("requests_per_second"), ...s.lines.map((l) => col(l.key))];
    s.show = s.unit;
    s.now = el("span");
    s.hover = (i) => {
      const at = known(i) ? i : hist.rows.length - 1, r = hist.rows[at];
      s.now.textContent = !r ? "" : (known(i) ? show.clock(r.at) + "  " : "") + s.lines.map((l) => (s.lines.length > 1 ? l.label + " " : "") + s.unit(r[l.key])).join(", ") +
        "  at " + show.num(r.requests_per_second) + " req/s";
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
    fill(head, el("h1", {}, name), el("p", { class: tone(verdictOf(name)) }, words(s)), el("p", { class: "quiet" }, "Machines: " + size(s) + ", baseline " + s.baseline));
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
      ["Holds", r.holds ? "yes" : "no", r.holds ? "warn" : ""], ["Since", r.since ? show.clock(r.since) : "–"],
    ])), "This service has no rules."));
    const blocks = (v.guards || []).filter((g) => g.blocks);
    if (blocks.length) out.push(el("h2", {}, "What holds it back"), el("ul", {}, blocks.map((g) => el("li", {}, g.code.replaceAll("_", " ") + ": " + g.detail))));
  }
  out.push(el("h2", {}, "Machines"), machineTable((page.status.machines || []).filter((m) => m.service === name)));
  const es = (page.events || []).filter((e) => e.service === name && e.kind !== "step").slice(-12).reverse();
  out.push(el("h2", {}, "Events"), eventTable(es));
  return out;
}

// ---- machines, events, alerts, mesh

function machineTable(ms) {
  return table(["Machine", "Service", "State", "Ready", "Role", "CPU", "Memory", "Queue", "Heard"], ms.map((m) => {
    const ok = m.ready ? "good" : m.state === "started" ? "warn" : "";
    return row([
      ["Machine", [el("span", { class: "dot " + ok }), m.id, m.pinned ? [" ", el("span", { class: "tag" }, "primary")] : null].flat(), "head"], ["Service", m.service],
      ["State", m.state || "not known"], ["Ready", m.readiness || "not known"], ["Role", m.role], ["CPU", show.pct(m.cpu), "n"],
      ["Memory", show.pct(m.memory), "n"], ["Queue", show.num(m.queue)], ["Heard", known(m.report_age_ms) ? show.age(m.report_age_ms) + " ago" : "never", "n"],
    ]);
  }), "No machine is known.");
}

function eventTable(es) {
  return table(["At (UTC)", "What", "Service", "Machines", "Why"], es.map((e) => row([
    ["At", show.clock(e.at), "n"], ["What", kindOf(e), "head n"], ["Service", e.service || "–"],
    ["Machines", e.from && e.from !== e.to && e.to ? e.from + " to " + e.to : e.to && !e.machine ? String(e.to) : e.machine || "–", "n"], ["Why", e.reason || "–", "w"],
  ])), "Nothing has happened yet.");
}

function simple(title, body) {
  return () => {
    const box = el("div");
    fill(main, el("h1", {}, title), box);
    return () => fill(box, body());
  };
}

const machines = simple("Machines", () => machineTable(page.status.machines || []));
const events = simple("Events", () => eventTable((page.events || []).slice().reverse()));

const runOf = (r) => !r ? "none yet" : r.state + (r.machine ? " on " + r.machine : "") + (known(r.started) ? ", began " + show.clock(r.started) : "") + (r.detail ? ": " + r.detail : "");
const jobs = simple("Jobs and locks", () => {
  const js = (page.jobs || []).map((j) => {
    const runs = j.runs || [], last = runs[runs.length - 1];
    const tone = !last ? "" : last.state === "done" ? "good" : ["failed", "lost"].includes(last.state) ? "bad" : "warn";
    return row([["Job", [el("span", { class: "dot " + tone }), j.name], "head n"], ["Service", j.service], ["When (UTC)", j.cron, "n"], ["Now", j.running ? runOf(j.running) : j.waits || "at rest", "w"],
      ["Last", runOf(last), "w"], ["Next", j.next ? show.day(j.next) : "–", "n"]]);
  });
  const ls = (page.locks || []).map((l) => row([["Lock", l.name, "head n"], ["Holder", l.holder.machine], ["Token", l.token, "n"], ["Since", show.day(l.at), "n"], ["For", l.reason || "–", "w"], ["Remark", l.why || "–", "w"]]));
  return [table(["Job", "Service", "When (UTC)", "Now", "Last", "Next"], js, "There are no jobs in mesh.toml."), el("h2", {}, "Locks that are held"),
    table(["Lock", "Holder", "Token", "Since", "For", "Remark"], ls, "None.")];
});

const alerts = simple("Alerts", () => {
  const a = page.alerts || {}, list = a.alerts || [];
  const order = { firing: 0, pending: 1, no_data: 2, resolved: 3 };
  const rows = list.slice().sort((x, y) => order[x.phase] - order[y.phase]).map((x) => row([
    ["Alert", [el("span", { class: "dot " + (x.phase === "firing" ? "bad" : x.phase === "pending" ? "warn" : x.phase === "resolved" ? "good" : "") }), x.rule], "head n"],
    ["Service", x.service || "the mesh"], ["Phase", x.phase.replace("_", " ") + (x.silenced ? " (silenced)" : "")], ["Severity", x.severity],
    ["For", show.age(Date.parse(a.at) - Date.parse(x.since)), "n"], ["What", x.text, "w"],
  ]));
  const quiet = (a.silences || []).map((q) => el("p", {}, q.rule + " tells nobody until " + show.clock(q.until) + " UTC, by " + q.by + (q.reason ? ": " + q.reason : "")));
  return [table(["Alert", "Service", "Phase", "Severity", "For", "What"], rows, "All " + (a.rules || 0) + " rules are at rest."), ...quiet];
});

const mesh = simple("Mesh", () => {
  const s = page.status, now = local || s;
  const q = now.quorum || {};
  const facts = [
    ["Mesh", s.mesh], ["Leader", local ? "nobody" : s.leader ? s.leader.machine : "nobody"], ["Quorum", q.healthy ? "a majority of the voters is alive" : "lost: nothing is scaled"],
    ["Voters", (q.voters || []).join(", ") || "none known"], ["Epoch", String(now.epoch)], ["Term", String(now.term)], ["Told by", now.from],
  ];
  const warnings = now.warnings || [];
  return [el("div", { class: "card" }, el("dl", {}, facts.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]))),
    el("h2", {}, "Warnings"), warnings.length ? el("ul", {}, warnings.map((w) => el("li", {}, w))) : el("p", { class: "quiet" }, "None.")];
});

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
  const firing = ((page.alerts || {}).alerts || []).filter((a) => a.phase === "firing" && !a.silenced).length;
  const count = document.getElementById("alert-count");
  count.hidden = !firing;
  count.textContent = firing;
  count.setAttribute("aria-label", firing + " firing");
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
