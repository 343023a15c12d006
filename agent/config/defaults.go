package config

import (
	"fmt"
	"strconv"
	"time"

	"flymesh/leader/decide"
)

// The kinds of a service.
const (
	KindN8N        = "n8n"
	KindEmbeddings = "embeddings"
	KindRedis      = "redis"
	KindWeb        = "web"
	KindApp        = "app"
)

var kinds = []string{KindN8N, KindEmbeddings, KindRedis, KindWeb, KindApp}

// Default returns what an empty file means. The defaults of services and
// probes, which depend on kind and type, are beside it in this file.
func Default() Config {
	return Config{Mesh: Mesh{
		ReportEvery:   5 * time.Second,
		Profile:       "default",
		Discover:      []string{"dns", "api", "peers"},
		NoLeaderGrace: 2 * time.Minute,
		DrainTimeout:  30 * time.Second,
		StartTimeout:  2 * time.Minute,
		ReadyTimeout:  5 * time.Minute,
		PinGrace:      5 * time.Minute,
		GossipPort:    7946,
		MeshPort:      7947,
		HealthPort:    9470,
		Socket:        "/run/flymesh/agent.sock",
	}, Alerts: Alerts{
		NoDataAfter:   5 * time.Minute,
		NoLeaderAfter: time.Minute,
		PagerDutyURL:  "https://events.pagerduty.com" + pagerDutyPath,
		Changes:       true,
	}}
}

// DefaultService returns what an empty [service.NAME] table of the kind means
// in the given mesh. Max and rules follow from the values that the file does
// state: see defaultMax and defaultRules.
func DefaultService(kind string, m Mesh) Service {
	s := Service{
		Kind:     kind,
		Group:    "app",
		StopMode: "stop",
		Owner:    "mesh",
		Redis:    Redis{Failover: FailoverOff, FailoverAfter: 30 * time.Second},
		Targets:  Targets{P95: 1500 * time.Millisecond, ErrorRate: 0.01},
		Policy: decide.Service{
			Baseline:    1,
			Cooldown:    5 * time.Minute,
			Mode:        decide.Auto,
			MinSamples:  20,
			ReadyGrace:  m.ReadyTimeout,
			NoGainAfter: 2,
			FlapPerHour: 4,
		},
	}
	switch kind {
	case KindN8N:
		s.Targets.Queue = 10
	case KindEmbeddings:
		s.Targets.P95 = 800 * time.Millisecond
		s.Targets.Queue = 20
	case KindRedis:
		s.Targets = Targets{CPU: 0.7, Memory: 0.7}
	}
	return s
}

// defaultMax is the cap of a service that states none, and how it is said.
func defaultMax(kind string, baseline int) (n int, text string) {
	if kind == KindRedis {
		return baseline, "baseline"
	}
	return 3 * baseline, "3 x baseline"
}

// defaultRules are the rules of a service that states none: those whose metric
// one of its probes supplies.
func defaultRules(t Targets, sources map[decide.Metric]bool) (up, down []string) {
	up, down = []string{"cpu > 80% for 3m"}, []string{"cpu < 40% for 10m"}
	if sources[decide.P95] {
		up, down = append(up, "p95 > 1.5s for 3m"), append(down, "p95 < 800ms for 10m")
	}
	if sources[decide.Queue] && t.Queue > 0 {
		q := strconv.FormatFloat(t.Queue, 'f', -1, 64)
		up, down = append(up, "queue > "+q+" for 3m"), append(down, "queue < "+q+" for 10m")
	}
	return up, down
}

// defaultProbe returns what an empty probe table of the type means.
func defaultProbe(kind string, m Mesh) Probe {
	p := Probe{Type: kind, Every: m.ReportEvery, Timeout: min(2*time.Second, m.ReportEvery), Scope: "machine", Status: 200}
	switch kind {
	case probeHTTP, probeRedis:
		p.Ready = true
	case probeBull:
		p.Prefix = "bull:jobs"
	case probeN8N:
		p.Ready, p.Role, p.Prefix, p.Webhooks = true, "main", "bull:jobs", []string{}
	case probeEmbeddings:
		p.Ready, p.Dialect = true, "tei"
	}
	return p
}

// shortDuration writes a duration as a person would: 3m, not 3m0s.
func shortDuration(d time.Duration) string {
	switch {
	case d == 0:
		return "0s"
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}
