package config

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/adhocore/gronx"

	"flymesh/leader/decide"
)

// appName is what Fly accepts as the name of an app.
var appName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

var modes = []string{string(decide.Auto), string(decide.UpOnly), string(decide.Shadow), string(decide.Off)}

func readService(t *table, name string, m Mesh) Service {
	kind := t.str("kind", KindApp, kinds...)
	d := DefaultService(kind, m)
	s := Service{
		Name:     name,
		Kind:     kind,
		App:      t.need("app", m.Name+"-"+name),
		Group:    t.str("group", d.Group),
		Vote:     t.flag("vote", d.Vote),
		Gate:     t.str("gate", d.Gate, "", "leader"),
		Targets:  readTargets(t.sub("targets"), d.Targets),
		StopMode: t.str("stop_mode", d.StopMode, "stop", "suspend"),
		Owner:    t.str("owner", d.Owner, "mesh", "proxy"),
		Regions:  t.list("regions", nil, "[]"),
	}
	s.Policy = readPolicy(t, name, kind, d.Policy)
	if s.App != "" && !appName.MatchString(s.App) {
		t.bad("app", "must be the name of a Fly app: lower-case letters, digits and inner dashes")
	}
	checkRegions(t, s.Regions)
	if s.StopMode == "suspend" && (s.Vote || s.Policy.Pinned) {
		t.bad("stop_mode", "must be \"stop\" where vote or pinned is true: a machine that wakes up goes on with the vote, locks and "+
			"jobs it had, on a clock and connections that are old")
	}
	if s.Group == "" {
		t.bad("group", "must not be empty; Fly's own default is %q", d.Group)
	}
	s.Proxy = readProxy(t.sub("proxy"))
	s.Probes = readProbes(t, m, s.Proxy)
	s.Redis = readRedisRoles(t.sub("redis"), s, d.Redis)
	sources := supplied(s.Probes)
	if s.Proxy.Listen != "" {
		sources[decide.P95], sources[decide.ErrorRate] = true, true
	}
	up, down := defaultRules(s.Targets, sources)
	const said = "those of the strategy whose metric has a probe"
	s.Policy.Up = readRules(t, "up", up, said, ">", m, sources)
	s.Policy.Down = readRules(t, "down", down, said, "<", m, sources)
	checkRules(t, s.Policy)
	page, warn := defaultAlerts(s.Targets, sources)
	s.Page = readRules(t, "page", page, said, "", m, sources)
	s.Warn = readRules(t, "warn", warn, "the targets for 5m whose metric has a probe", "", m, sources)
	s.BurnRates = readBurnRates(t, s.Targets, sources)
	return s
}

func readPolicy(t *table, name, kind string, d decide.Service) decide.Service {
	const most = 1000 // far over any fleet: catches a slip of the finger
	p := decide.Service{
		Name:        name,
		Baseline:    t.count("baseline", d.Baseline, 1, most),
		Cooldown:    t.span("cooldown", d.Cooldown, 0, 24*time.Hour),
		Mode:        decide.Mode(t.str("mode", string(d.Mode), modes...)),
		Pinned:      t.flag("pinned", d.Pinned),
		MinSamples:  t.count("min_samples", d.MinSamples, 1, 1_000_000),
		ReadyGrace:  t.spanSaid("ready_grace", d.ReadyGrace, time.Second, time.Hour, "mesh.ready_timeout"),
		NoGainAfter: t.count("no_gain_after", d.NoGainAfter, 0, most),
		BudgetHours: t.number("budget_machine_hours", d.BudgetHours, 24*3*most),
		FlapPerHour: t.count("flap_per_hour", d.FlapPerHour, 0, most),
	}
	if p.FlapPerHour == 1 {
		t.bad("flap_per_hour", "must be 0 (no limit) or at least 2: a removal and its return are two")
	}
	max, said := defaultMax(kind, p.Baseline)
	p.Max = t.count("max", max, math.MinInt, 3*most)
	t.f.schema[join(t.form, "max")] = said
	if least := float64(24 * p.Baseline); p.BudgetHours > 0 && p.BudgetHours < least {
		t.bad("budget_machine_hours", "must be 0 (no limit) or at least %s: the baseline alone (%d) costs that in a day", literal(least), p.Baseline)
	}
	if p.Max < p.Baseline {
		t.bad("max", "must be at least baseline (%d)", p.Baseline)
	}
	return p
}

// regionCode is how Fly names a region.
var regionCode = regexp.MustCompile(`^[a-z]{3}$`)

func checkRegions(t *table, regions []string) {
	for i, r := range regions {
		at := fmt.Sprintf("%s[%d]", t.at("regions"), i)
		if !regionCode.MatchString(r) {
			t.f.bad(at, literal(r), `must be the code of a Fly region, e.g. "fra"`)
		} else if slices.Index(regions, r) != i {
			t.f.bad(at, literal(r), "is listed twice")
		}
	}
}

func readTargets(t *table, d Targets) Targets {
	return Targets{
		P95:       t.span("p95", d.P95, 0, time.Hour),
		ErrorRate: t.ratio("error_rate", d.ErrorRate),
		Queue:     t.number("queue", d.Queue, 1e9),
		CPU:       t.ratio("cpu", d.CPU),
		Memory:    t.ratio("memory", d.Memory),
	}
}

// readRules reads up (op ">"), down (op "<") or alerts (either).
func readRules(t *table, key string, fallback []string, said, op string, m Mesh, sources map[decide.Metric]bool) []decide.Rule {
	var rules []decide.Rule
	for i, text := range t.list(key, fallback, said) {
		at := fmt.Sprintf("%s[%d]", t.at(key), i)
		r, err := decide.ParseRule(text)
		switch {
		case err != nil:
			_, why, _ := strings.Cut(err.Error(), decide.ErrRule.Error()+": ")
			t.f.bad(at, literal(text), "%s", cmp.Or(why, err.Error()))
			continue
		case op != "" && r.Op != op:
			t.f.bad(at, literal(text), "rules of %s compare with %q", key, op)
		case r.For < m.ReportEvery:
			t.f.bad(at, literal(text), "its duration must be at least mesh.report_every (%s), or no report falls into it", shortDuration(m.ReportEvery))
		case !sources[r.Metric]:
			t.f.bad(at, literal(text), "no probe of this service supplies %s; %s", r.Metric, sourceAdvice(r.Metric))
		}
		rules = append(rules, r)
	}
	return rules
}

// checkRules refuses rules that would answer one measurement with both an
// addition and a removal.
func checkRules(t *table, p decide.Service) {
	for _, d := range p.Down {
		for i, u := range p.Up {
			if d.Metric == u.Metric && d.Value > u.Value {
				t.f.bad(fmt.Sprintf("%s[%d]", t.at("up"), i), literal(u.Text),
					"would add a machine where %q removes one; its value must not be under that rule's", d.Text)
			}
		}
	}
}

// isCron wants the five classic fields: the library would also take seconds,
// years and names such as @daily.
func isCron(spec string) bool {
	return len(slices.DeleteFunc(regexp.MustCompile(`\s+`).Split(spec, -1), func(s string) bool { return s == "" })) == 5 &&
		gronx.New().IsValid(spec)
}
