// Package leader is one term's loop: gather, decide, record the intent, act,
// record the outcome. It declares its ports (Cloud, Agents, Store) and does no
// I/O of its own.
//
// Only the raft leader runs a term. Everything that must outlive it is in the
// replicated state (raftstore/state) or in the window that every voter keeps;
// what is kept in memory here is a cache or a log line. A new leader carries
// every open operation on from what is true, not from what was meant.
package leader

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"flymesh/leader/decide"
	"flymesh/raftstore/state"
)

// Store is the replicated state as the leader needs it.
type Store interface {
	Propose(ctx context.Context, c state.Command) (state.Result, error)
	// State returns a copy.
	State() *state.State
	// Verify fails unless this node leads right now and the epoch record names
	// its cluster. It is asked before every action.
	Verify(ctx context.Context) error
	// Leads fails unless a majority of the voters says that this node leads right
	// now. It asks nobody else: leases are renewed also while the record cannot
	// be read.
	Leads(ctx context.Context) error
	// MayStop fails if stopping the machine would endanger the quorum; it moves
	// the vote elsewhere first where it can.
	MayStop(ctx context.Context, machine string) error
	// Roles says which machines vote and which one leads.
	Roles() (voters []string, leader string)
}

// Term is one leadership of this node.
type Term struct {
	Number  uint64
	Epoch   uint64
	Context context.Context // cancelled when the leadership is lost
}

// Service is what the leader needs to know of one service.
type Service struct {
	Policy decide.Service
	App    string
	Group  string
	Gated  bool   // loaded machines wait for the leader's admission
	Owner  string // mesh | proxy
	// Failover is of a Redis.
	Failover Failover
	// Suspend takes machines out by suspending them where the platform allows it.
	Suspend bool
	// Regions are where machines are created, each tried when the one before is
	// full; empty: only where the machine that is copied runs.
	Regions []string
}

// Options are what a Leader is made of.
type Options struct {
	Self         string // machine ID
	Services     []Service
	Policy       decide.Policy
	Store        Store
	Cloud        Cloud
	Agents       Agents
	Holders      Holders // nil: no locks are granted, and no jobs run
	Jobs         []Job
	Reports      *Reports
	Round        time.Duration // pause between rounds; at least minRound
	DrainTimeout time.Duration // longest wait for a machine to finish what it has
	StartTimeout time.Duration // from the start call to the API's "started"
	ReadyTimeout time.Duration // from "started" to ready
	PinGrace     time.Duration // a stopped primary keeps its place this long
	Logger       *slog.Logger
	Metrics      *Metrics
	Alerting     Alerting
}

// handover is how long a new leader waits before its first listing: what its
// predecessor did a moment ago counts against the same limit of the API.
const handover = 1200 * time.Millisecond

// minRound is the shortest pause between rounds: the API allows about one
// listing per second and app, and the loop is not the only one who lists.
const minRound = 1500 * time.Millisecond

// Leader leads the mesh whenever raft says so.
type Leader struct {
	Options
	log *slog.Logger

	mu        sync.Mutex        // guards all below
	view      *view             // of the running term; nil while another machine leads
	locks     *locks            // of the running term
	primaries map[string]copied // by service: of a Redis, as last heard

	listed  *listings // newest listing by app, of this term
	deploys *deploys  // what this term knows of deploys

	// Only used by the term's own goroutine.
	said    map[string]string    // newest verdict logged, by service
	gone    map[string]time.Time // by service: since when the primary is not running
	short   map[string]time.Time // by service: since when fewer than the baseline are listed
	cold    map[string]int       // by machine: rounds in a row in which an admitted one was not loaded
	driven  map[string]bool      // operations that have a driver
	drivers sync.WaitGroup
	drvMu   sync.Mutex // guards driven
}

// New returns a Leader that waits for its first term.
func New(o Options) *Leader {
	o.Round = max(o.Round, minRound)
	return &Leader{Options: o, log: o.Logger.With("component", "leader")}
}

// Run leads in every term that arrives, one after the other, until ctx ends.
func (l *Leader) Run(ctx context.Context, terms <-chan Term) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-terms:
			l.lead(ctx, t)
		}
	}
}

// lead runs one term. It returns when the term's context has ended and every
// driver has stopped.
func (l *Leader) lead(ctx context.Context, t Term) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.Context, cancel)()
	ctx = WithCheck(ctx, l.Store.Verify)

	l.listed, l.deploys = newListings(), newDeploys()
	l.said, l.gone, l.short = map[string]string{}, map[string]time.Time{}, map[string]time.Time{}
	l.driven, l.cold = map[string]bool{}, map[string]int{}
	defer l.setView(nil)
	defer l.drivers.Wait()
	defer cancel()

	if _, err := l.propose(ctx, t, state.Command{Elect: &state.Elect{Machine: l.Self, Epoch: t.Epoch}}); err != nil {
		l.log.Warn("announce leadership failed", "term", t.Number, "error", err)
		return
	}
	l.log.Info("leading", "term", t.Number, "epoch", t.Epoch)
	defer l.log.Info("no longer leading", "term", t.Number)

	if l.Holders != nil {
		l.drivers.Go(func() { l.keepLocks(ctx, t) })
	}
	l.show(t) // what the reports say is known before the API has answered
	for _, r := range l.Alerting.Receivers {
		l.drivers.Go(func() { l.deliver(ctx, t, r) })
	}
	for _, r := range l.Alerting.Steps {
		l.drivers.Go(func() { l.deliverSteps(ctx, t, r) })
	}
	l.Metrics.begin(l.Store.State(), l.Services, l.Jobs)
	tick := time.NewTicker(l.Round)
	defer tick.Stop()
	for wait := time.After(handover); ; wait = nil {
		select {
		case <-ctx.Done():
			return
		case <-wait:
		case <-tick.C:
		}
		l.round(ctx, t)
	}
}

// round gathers, decides and acts once.
func (l *Leader) round(ctx context.Context, t Term) {
	l.list(ctx)
	if ctx.Err() != nil {
		return
	}
	l.giveBack(ctx, t)
	l.place(ctx, t)
	l.meter(ctx, t)
	in, plan := l.show(t)
	l.noteShort(in, plan.Verdicts)
	l.Metrics.round(plan.Verdicts)
	l.tell(plan.Verdicts)
	l.alerts(ctx, t, in, plan.Verdicts)
	l.act(ctx, t, in, plan.Verdicts)
	l.admit(ctx, t)
	l.revoke(ctx, t)
	l.Metrics.ended(l.Store.State())
}

// show decides without acting, for status and why.
func (l *Leader) show(t Term) (decide.Input, decide.Result) {
	in := l.gather(t)
	plan := decide.Plan(in)
	l.setView(&view{term: t, at: in.Now, in: in, verdicts: plan.Verdicts})
	return in, plan
}

// act records the intent of every decided step, forgets what is over, and sees
// that each open operation has a driver.
func (l *Leader) act(ctx context.Context, t Term, in decide.Input, verdicts []decide.Verdict) {
	for _, v := range verdicts {
		if a := v.Action; a != nil && !a.Dry {
			l.begin(ctx, t, v)
		}
		l.settle(ctx, t, in.Services[v.Service], v)
	}
	for id := range l.Store.State().Ops {
		l.drive(ctx, t, id)
	}
}

func (l *Leader) begin(ctx context.Context, t Term, v decide.Verdict) {
	a := v.Action
	b := &state.Begin{
		Service: v.Service, Kind: state.OpKind(a.Kind), Machine: a.Machine,
		From: a.From, To: a.To, Code: string(v.Reason.Code), Reason: v.Reason.Text, Manual: a.Manual,
		Rule: v.Reason.Code == decide.CodeRuleUp || v.Reason.Code == decide.CodeRuleDown,
	}
	if a.Trigger != nil {
		b.Trigger = &state.Addition{At: a.Trigger.At, Metric: string(a.Trigger.Metric), Value: a.Trigger.Value}
	}
	r, err := l.propose(ctx, t, state.Command{Begin: b})
	if err != nil {
		l.log.Warn("record intent failed", "service", v.Service, "error", err)
		return
	}
	l.log.Info("decision", "service", v.Service, "verdict", v.Verdict, "code", string(v.Reason.Code),
		"op", r.Op, "from", a.From, "to", a.To, "machine", a.Machine, "reason", v.Reason.Text)
}

// settle forgets a manual size that is reached or cannot be, and the additions
// of a breach that is over.
func (l *Leader) settle(ctx context.Context, t Term, s decide.ServiceState, v decide.Verdict) {
	c := state.Settle{Service: v.Service, Additions: v.Recovered && len(s.Additions) > 0}
	if s.Manual != nil && (v.ManualReached || v.ManualImpossible != "") {
		c.Manual, c.Reason = true, v.ManualImpossible
	}
	if !c.Manual && !c.Additions {
		return
	}
	if _, err := l.propose(ctx, t, state.Command{Settle: &c}); err != nil {
		l.log.Warn("settle failed", "service", v.Service, "error", err)
	}
}

// tell logs each service's verdict when it changes.
func (l *Leader) tell(verdicts []decide.Verdict) {
	for _, v := range verdicts {
		now := v.Verdict + " " + string(v.Reason.Code)
		if l.said[v.Service] == now {
			continue
		}
		l.said[v.Service] = now
		level := slog.LevelInfo
		if v.Page != "" {
			level = slog.LevelWarn
		}
		l.log.Log(context.Background(), level, "verdict", "service", v.Service, "verdict", v.Verdict,
			"code", string(v.Reason.Code), "reason", v.Reason.Text, "page", v.Page)
	}
}

// propose stamps and commits a command of this term.
func (l *Leader) propose(ctx context.Context, t Term, c state.Command) (state.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c.At, c.Term, c.By = time.Now().UTC(), t.Number, l.Self
	r, err := l.Store.Propose(ctx, c)
	if err != nil {
		return r, fmt.Errorf("propose command: %w", err)
	}
	return r, r.Err()
}

// service returns the named service's facts.
func (l *Leader) service(name string) (Service, bool) {
	for _, s := range l.Services {
		if s.Policy.Name == name {
			return s, true
		}
	}
	return Service{}, false
}
