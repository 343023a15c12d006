// Package config is mesh.toml: one strict file, the same in every image.
//
// Unknown keys are errors, defaults live in one place (defaults.go), and Load
// reports every problem at once by key path and line. A Config is a value that
// nobody changes after Load; any goroutine may read it.
package config

import (
	"time"

	"flymesh/leader/decide"
)

// Config is a whole mesh.toml with all defaults filled in.
type Config struct {
	Mesh     Mesh
	Alerts   Alerts
	Services []Service // in file order
	Jobs     []Job     // in file order

	hash string
}

// Mesh is the [mesh] table.
type Mesh struct {
	Name          string        // [mesh] name: part of every derived key; other names cannot talk
	AnchorApp     string        // anchor_app: the app whose machines carry the epoch record; default: app of the first voting service
	ReportEvery   time.Duration // report_every
	Profile       string        // raft timeouts: fast | default | wide
	Peers         []string      // explicit addresses "host:port" to find others by, besides DNS and the API
	Discover      []string      // ways of finding others, of: dns, api, peers
	NoLeaderGrace time.Duration // no_leader_grace: a gated machine admits itself after this long without a leader
	DrainTimeout  time.Duration // drain_timeout: longest wait for a machine to finish what it has
	StartTimeout  time.Duration // start_timeout: from the start call to the API's "started"
	ReadyTimeout  time.Duration // ready_timeout: from "started" to ready
	PinGrace      time.Duration // pin_grace: a primary that does not run keeps its place this long
	GossipPort    int
	MeshPort      int
	HealthPort    int
	Socket        string // unix socket path
}

// Service is one [service.NAME] table.
type Service struct {
	Name     string
	Kind     string // n8n | embeddings | redis | web | app: chooses default targets and rules
	App      string // Fly app
	Group    string // process group, default "app"
	Vote     bool   // its baseline machines may be raft voters (they hold the tokens)
	Gate     string // "" | "leader": loaded machines wait for the leader's admission
	Targets  Targets
	Probes   []Probe        // one of type host is always there
	Policy   decide.Service // name, baseline, max, rules, cooldown, mode, pinned, min_samples, ...
	StopMode string         // stop | suspend
	Owner    string         // mesh | proxy
	Page     []decide.Rule  // who breaks one of these calls somebody
	// BurnRates are the targets (error_rate, p95) of which people are told how
	// fast they are used up.
	BurnRates []string
	Warn      []decide.Rule // these are told, and call nobody
	Regions   []string      // where machines are created, in this order; empty: where the copied one runs
	Proxy     Proxy
	Redis     Redis
}

// Redis is the [service.NAME.redis] table: what the mesh does with a Redis.
type Redis struct {
	Failover      string        // off | manual | auto: who makes the candidate the primary
	FailoverAfter time.Duration // auto: after the primary was not well for this long
	ChatKeys      string        // pattern of the keys that are chats; empty: a person gives it
}

// The ways in which a Redis gets another primary.
const (
	FailoverOff    = "off"    // none: the mesh does not touch roles
	FailoverManual = "manual" // a person asks for it
	FailoverAuto   = "auto"
)

// Proxy is the [service.NAME.proxy] table: a measuring reverse proxy in front
// of the app. Without Listen there is none.
type Proxy struct {
	Listen string // host:port that takes the traffic
	Target string // URL of the app
}

// Targets are the service level objectives, for status, alerts and the default
// queue rule. Zero means none.
type Targets struct {
	P95       time.Duration
	ErrorRate float64 // ratio
	Queue     float64 // requests or jobs
	CPU       float64 // ratio
	Memory    float64 // ratio
}

// Probe is one [[service.NAME.probe]] table.
type Probe struct {
	Type     string        // host | http | prometheus | redis | bull | n8n | embeddings
	URL      string        // for http, prometheus, n8n and embeddings
	Addr     string        // of Redis, for redis, bull and n8n: host:port
	Every    time.Duration // default: report_every
	Timeout  time.Duration
	Status   int     // http: wanted status, default 200
	Body     string  // http: text that the body must contain
	Latency  string  // prometheus: histogram family, seconds
	Errors   string  // prometheus: selector of the error count, e.g. `requests_total{code=~"5.."}`
	Requests string  // prometheus: selector of the request count; default: the histogram's count
	InFlight string  // prometheus: gauge selector
	Queue    string  // prometheus: gauge selector
	Scope    string  // queue scope: machine | service
	Ready    bool    // its success is needed for readiness
	CPU      float64 // host: cores that the app may use; 0: cgroup quota, else the machine

	PasswordEnv string   // redis, bull, n8n: environment variable that holds Redis' password
	Prefix      string   // bull, n8n: of the queue's keys
	Role        string   // n8n: main | worker | auto: what the role-aware command runs
	WorkerURL   string   // n8n, role auto: of a worker\'s health port
	Webhooks    []string // n8n: paths whose requests count; none: all
	Canary      string   // n8n: path of a webhook that is asked at each probe
	Dialect     string   // embeddings: tei | infinity | ollama | openai
	Model       string   // embeddings: its name, for all but tei
	Dimension   int      // embeddings: of a vector; 0: of the first one
	Elsewhere   bool     // n8n, embeddings: the proxy measures the requests
}

// Job is one [job.NAME] table: a scheduled job on a pinned service's primary.
type Job struct {
	Name       string
	Service    string
	Cron       string   // five fields, UTC; empty: only when a person asks
	URL        string   // a call that does the work; empty: Command
	Method     string   // of the call
	HeadersEnv []string // "Header=VARIABLE": headers of the call, with values from the environment
	Status     int      // that means success; 0: any of 200 to 299
	Expect     string   // "FIELD=VALUE" that the JSON answer must have; empty: any answer
	Command    []string // a program that does the work
	Args       []string // "name=value": what a person does not give
	Timeout    time.Duration
	Misfire    time.Duration // a tick that is older is skipped
}

// Hash returns the first 8 hex digits of the SHA-256 of what the file says;
// comments, white space and the order of keys do not matter. Agents show it so
// that machines with another file stand out.
func (c *Config) Hash() string { return c.hash }

// Service returns the service of that name.
func (c *Config) Service(name string) (Service, bool) {
	for _, s := range c.Services {
		if s.Name == name {
			return s, true
		}
	}
	return Service{}, false
}

// ServiceOf returns the service that runs as this app and process group.
func (c *Config) ServiceOf(app, group string) (Service, bool) {
	for _, s := range c.Services {
		if s.App == app && s.Group == group {
			return s, true
		}
	}
	return Service{}, false
}

// Policy returns the part of the file that scaling needs.
func (c *Config) Policy() decide.Policy {
	p := decide.Policy{ReportEvery: c.Mesh.ReportEvery}
	for _, s := range c.Services {
		p.Services = append(p.Services, s.Policy)
	}
	return p
}

// Apps returns every app of the mesh once, in file order.
func (c *Config) Apps() []string {
	return c.apps(func(Service) bool { return true })
}

// TokenApps returns the apps that a voter needs a token for, in file order:
// those that the mesh scales, and the anchor app, which carries the epoch
// record.
func (c *Config) TokenApps() []string {
	return c.apps(func(s Service) bool {
		return s.App == c.Mesh.AnchorApp || s.Owner == "mesh" && s.Policy.Mode != decide.Off
	})
}

func (c *Config) apps(want func(Service) bool) []string {
	var apps []string
	seen := map[string]bool{}
	for _, s := range c.Services {
		if want(s) && !seen[s.App] {
			seen[s.App] = true
			apps = append(apps, s.App)
		}
	}
	return apps
}
