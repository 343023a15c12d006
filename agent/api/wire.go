// Package api is the mesh's HTTP API: its wire types, handlers and client.
//
// Three doors lead to one set of handlers: the unix socket (the app and
// agentctl on the same machine), the mesh port (other agents, mutual TLS) and
// the health port (anyone: /health and /metrics alone). A request that only
// the leader can answer is forwarded to it from whichever agent got it.
package api

import (
	"context"
	"errors"
	"time"

	"flymesh/leader"
	"flymesh/leader/decide"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// Paths of the mesh API, on the unix socket and the mesh port.
const (
	PathStatus  = "/v1/status"  // GET -> Status
	PathWhy     = "/v1/why/"    // GET /v1/why/SERVICE -> decide.Verdict
	PathEvents  = "/v1/events"  // GET ?after=INDEX -> []state.Event, oldest first
	PathScale   = "/v1/scale"   // POST ScaleRequest -> Accepted
	PathPause   = "/v1/pause"   // POST PauseRequest -> Accepted
	PathResume  = "/v1/resume"  // POST PauseRequest -> Accepted
	PathPropose = "/v1/propose" // POST state.Command -> state.Result (mesh port only)
	PathWindows = "/v1/windows" // GET -> bytes of window.Window.Export (mesh port only)
	PathDrain   = "/v1/drain"   // POST DrainRequest -> leader.DrainResult, by the machine itself (mesh port only)
	PathAdmit   = "/v1/admit"   // POST AdmitRequest, by the machine itself (mesh port only)
	PathAlerts  = "/v1/alerts"  // GET -> Alerts
	PathSilence = "/v1/silence" // POST SilenceRequest -> Accepted
	PathHistory = "/v1/history" // GET ?service=NAME&since=6h[&grain=sample][&machines=1] -> History
	PathPast    = "/v1/past"    // GET -> bytes of history.History.Export (mesh port only)
	PathPage    = "/v1/page"    // GET -> Page
	PathHealth  = "/health"     // GET -> Health, 200 in ready, else 503
	PathMetrics = "/metrics"
)

// Status is `agentctl status --json`. Unknown values are null.
type Status struct {
	Mesh     string          `json:"mesh"`
	Epoch    uint64          `json:"epoch"`
	Term     uint64          `json:"term"`
	Leader   *LeaderRef      `json:"leader"` // null: no leader is known
	Quorum   Quorum          `json:"quorum"`
	Services []ServiceStatus `json:"services"`
	Machines []MachineStatus `json:"machines"`
	Warnings []string        `json:"warnings"`
	// From says whose view this is: the leader's, or without one the answering agent's own.
	From string    `json:"from"`
	At   time.Time `json:"at"`
}

// LeaderRef names the leader.
type LeaderRef struct {
	Machine string `json:"machine"`
}

// Quorum is the state of the voters.
type Quorum struct {
	Healthy bool     `json:"healthy"` // a majority of the voters is alive
	Voters  []string `json:"voters"`  // machine IDs
}

// ServiceStatus is one service. Ratios are 0 to 1.
type ServiceStatus struct {
	Name          string       `json:"name"`
	Mode          string       `json:"mode"`
	Baseline      int          `json:"baseline"`
	Max           int          `json:"max"`
	Started       *int         `json:"started"` // null: not known here
	Ready         *int         `json:"ready"`
	Unknown       *int         `json:"unknown"`
	CPU           report.Value `json:"cpu"`
	P95           report.Value `json:"p95_ms"`
	P95Samples    report.Value `json:"p95_samples"`
	ErrorRate     report.Value `json:"error_rate"`
	Queue         report.Value `json:"queue"`
	CooldownUntil *time.Time   `json:"cooldown_until"`
	PausedUntil   *time.Time   `json:"paused_until"`
	Verdict       *string      `json:"verdict"`
	Reason        *string      `json:"reason"`
}

// MachineStatus is one machine.
type MachineStatus struct {
	ID          string       `json:"id"`
	Service     string       `json:"service"`
	Region      string       `json:"region"`
	State       *string      `json:"state"` // the Machines API's; null: not known here
	Ready       *bool        `json:"ready"`
	Readiness   *string      `json:"readiness"`
	Role        string       `json:"role"` // leader | voter | nonvoter | agent
	Pinned      bool         `json:"pinned"`
	AppRole     string       `json:"app_role,omitempty"` // of a role-aware command: primary | replica | switching
	CPU         report.Value `json:"cpu"`
	Memory      report.Value `json:"memory"`
	Queue       report.Value `json:"queue"`
	ReportAgeMS *int64       `json:"report_age_ms"` // null: never heard
	Version     *string      `json:"version"`
	ConfigHash  *string      `json:"config_hash"`

	Replication *report.Replication `json:"replication"` // of its Redis; null: it has none, or it is not known here
}

// ScaleRequest asks for a size: Delta relative to the machines that run, or Target.
type ScaleRequest struct {
	Service string `json:"service"`
	Delta   int    `json:"delta,omitempty"`
	Target  *int   `json:"target,omitempty"`
	Reason  string `json:"reason"`
	By      string `json:"by"`
}

// PauseRequest pauses (For > 0) or resumes a service.
type PauseRequest struct {
	Service string        `json:"service"`
	For     time.Duration `json:"for,omitempty"`
	Reason  string        `json:"reason"`
	By      string        `json:"by"`
}

// Accepted is the answer to a command of a person.
type Accepted struct {
	Index uint64 `json:"index"`
	Text  string `json:"text"` // what will happen, in one sentence
}

// DrainRequest starts or takes back a drain.
type DrainRequest struct {
	Deadline time.Duration `json:"deadline"`
	Undo     bool          `json:"undo,omitempty"`
}

// AdmitRequest tells a gated machine that it may be ready, or that it may no
// longer.
type AdmitRequest struct {
	Boot   string `json:"boot"`
	Revoke bool   `json:"revoke,omitempty"`
}

// Health is the body of /health.
type Health struct {
	State   string    `json:"state"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	Machine string    `json:"machine"`
	Service string    `json:"service"`
}

// Problem is the body of every error answer.
type Problem struct {
	Error string `json:"error"`
	Code  string `json:"code"` // one of the Code constants
}

// ErrNoLeader says that nobody leads the mesh right now.
var ErrNoLeader = errors.New("the mesh has no leader")

// Backend is what the handlers need of the agent. Calls on a machine that is
// not the leader are forwarded before they reach Leading's methods.
type Backend interface {
	// Route says who answers leader requests: self, or the address host:port
	// of the mesh port to forward to (a leader if one is known, else a voter);
	// ok false: nobody is known.
	Route() (self bool, addr string, ok bool)
	Health() (Health, bool) // bool: ready
	LocalStatus() Status    // without a leader: what this agent knows itself; the first warning says since when
	Drain(ctx context.Context, r DrainRequest) (leader.DrainResult, error)
	Admit(ctx context.Context, r AdmitRequest) error
	Leading
}

// Leading is answered by the leader alone. Its methods fail with ErrNoLeader elsewhere.
type Leading interface {
	Status(ctx context.Context) (Status, error)
	Why(ctx context.Context, service string) (decide.Verdict, error)
	Events(ctx context.Context, after uint64) ([]state.Event, error)
	Scale(ctx context.Context, r ScaleRequest) (Accepted, error)
	Pause(ctx context.Context, r PauseRequest) (Accepted, error)
	Resume(ctx context.Context, r PauseRequest) (Accepted, error)
	Alerts(ctx context.Context) (Alerts, error)
	History(ctx context.Context, q HistoryQuery) (History, error)
	Past(ctx context.Context) ([]byte, error)
	Page(ctx context.Context) (Page, error)
	Silence(ctx context.Context, r SilenceRequest) (Accepted, error)
	Propose(ctx context.Context, c state.Command) (state.Result, error)
	Windows(ctx context.Context) ([]byte, error)
}

// RequestError says that a request cannot be carried out as it is: it names
// the key, the value and what would be right. Handlers answer 400.
type RequestError struct{ Text string }

// Error returns the text.
func (e *RequestError) Error() string { return e.Text }
