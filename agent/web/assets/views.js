"use strict";
// The views that are tables: machines, events, jobs and locks, alerts, the mesh.

// bar shows a ratio as a number with a bar under it.
function bar(x) {
  if (!known(x)) return "–";
  return el("span", { class: "bar" }, show.pct(x), svg("svg", { viewBox: "0 0 100 3", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: 100, height: 3 }), svg("rect", { class: x > 0.8 ? "hot" : "in", width: Math.min(100, 100 * x).toFixed(1), height: 3 })));
}

function machineTable(ms, one) {
  return table(["Machine", one ? null : "Service", "State", "Ready", "Role", "CPU", "Memory", "Queue", "Heard"], ms.map((m) => {
    const ok = m.ready ? "good" : m.state === "started" ? "warn" : "";
    const tags = [m.app_role || (m.pinned ? "primary" : null), m.app_role && m.pinned && m.app_role !== "primary" ? "pinned" : null].filter(Boolean);
    return row([
      ["Machine", [el("span", { class: "dot " + ok }), el("code", {}, m.id), tags.map((t) => [" ", el("span", { class: "tag" }, t)])].flat(2), "head"], one ? null : ["Service", m.service],
      ["State", m.state || "not known"], ["Ready", m.readiness || "not known", m.state === "started" && !m.ready ? "warn" : ""], ["Role", m.role], ["CPU", bar(m.cpu), "n"],
      ["Memory", bar(m.memory), "n"], ["Queue", show.num(m.queue)], ["Heard", known(m.report_age_ms) ? show.age(m.report_age_ms) + " ago" : "never", "n"],
    ]);
  }), "No machine is known.");
}

// toneOf is what an event means for who reads it.
const toneOf = (kind) => /failed|abandoned|lost|revoke|given_up/.test(kind) || kind === "alert" ? "bad" : /^up/.test(kind) ? "up" : /^down/.test(kind) ? "down" : kind === "leader" || kind === "wait" ? "warn" : /done|resolved|admit/.test(kind) ? "good" : "";

function eventTable(es, one) {
  return table(["At (UTC)", "What", one ? null : "Service", "Machines", "Why"], es.map((e) => row([
    ["At", Date.now() - Date.parse(e.at) > 43200000 ? show.day(e.at) : show.clock(e.at), "n"], ["What", [el("span", { class: "dot " + toneOf(e.kind) }), kindOf(e)], "head n"], one ? null : ["Service", e.service || "–"],
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
    return row([["Job", [el("span", { class: "dot " + tone }), j.name], "head n"], ["Service", j.service], ["When (UTC)", j.cron || "when asked", "n"], ["Now", j.running ? runOf(j.running) : j.waits || "at rest", "w"],
      ["Last", runOf(last), "w"], ["Next", j.next ? show.day(j.next) : "–", "n"]]);
  });
  const ls = (page.locks || []).map((l) => row([["Lock", l.name, "head n"], ["Holder", l.holder.machine], ["Token", l.token, "n"], ["Since", show.day(l.at), "n"], ["For", l.reason || "–", "w"], ["Remark", l.why || "–", "w"]]));
  return [table(["Job", "Service", "When (UTC)", "Now", "Last", "Next"], js, "There are no jobs in mesh.toml. A [job.NAME] table makes one."), el("h2", {}, "Locks that are held"),
    table(["Lock", "Holder", "Token", "Since", "For", "Remark"], ls, "Nobody holds a lock.")];
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
    ["Epoch", String(now.epoch)], ["Term", String(now.term)], ["Told by", now.from],
  ];
  const warnings = now.warnings || [], of = (id) => (s.machines || []).find((m) => m.id === id) || {};
  const voters = (q.voters || []).map((id) => row([
    ["Voter", [el("span", { class: "dot " + (known(of(id).report_age_ms) && of(id).report_age_ms < 15000 ? "good" : "warn") }), el("code", {}, id)], "head n"], ["Service", of(id).service || "not known"],
    ["Role", of(id).role || "not known"], ["Heard", known(of(id).report_age_ms) ? show.age(of(id).report_age_ms) + " ago" : "never", "n"], ["Version", of(id).version || "not known"],
  ]));
  return [el("div", { class: "card" }, el("dl", {}, facts.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]))),
    el("h2", {}, "Warnings"), warnings.length ? el("ul", { class: "notes" }, warnings.map((w) => el("li", {}, w))) : el("p", { class: "none" }, "There are none."),
    el("h2", {}, "Voters"), table(["Voter", "Service", "Role", "Heard", "Version"], voters, "None is known.")];
});
