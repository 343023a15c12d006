package leader_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
	"flymesh/leader/burn"
	"flymesh/leader/decide"
	"flymesh/leader/flyapi"
	"flymesh/leader/flyapi/flytest"
	"flymesh/probes/report"
	"flymesh/raftstore/epoch"
	"flymesh/raftstore/state"
)

// stand is a mesh in a bubble: the emulated Machines API with in-memory
// machines, a small agent on each of them, and voters that share one
// replicated state. The leader, its adapter and the API between them are real.
type stand struct {
	t      *testing.T
	api    *flytest.Server
	raft   *cluster
	voters []*voter
	policy decide.Policy
	svcs   []leader.Service
	goals  []burn.Goal
	tweak  func(*leader.Options) // of each voter; nil: none
	record bool                  // voters read the epoch record before each action

	timing flytest.Timing
	reach  func(http.RoundTripper) http.RoundTripper // what the voters' clients go through; nil: nothing
	oracle *oracle                                   // of a random run

	startTimeout, readyTimeout time.Duration

	mu     sync.Mutex // guards all below
	agents map[string]*machineAgent
	dud    bool               // machines that boot from now on never become ready
	lost   time.Time          // when an agent last ended
	load   map[string]float64 // machines' worth of work offered, by service
	holds  *lockSim           // nil: no machine holds locks
	jobs   *jobSim            // nil: no machine runs jobs
}

const (
	every   = 5 * time.Second
	appName = "acme-n8n"
)

// standPolicy is the strategy's default with three machines at most.
func standPolicy(t *testing.T) decide.Policy {
	t.Helper()
	rule := func(s string) decide.Rule {
		r, err := decide.ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	return decide.Policy{ReportEvery: every, Services: []decide.Service{{
		Name: "n8n", Baseline: 1, Max: 3, Mode: decide.Auto, Pinned: true, Cooldown: 5 * time.Minute,
		Up: []decide.Rule{rule("cpu > 80% for 3m")}, Down: []decide.Rule{rule("cpu < 40% for 10m")},
		MinSamples: 20, ReadyGrace: 5 * time.Minute, NoGainAfter: 2,
	}}}
}

func newStand(t *testing.T, timing flytest.Timing, with ...func(*stand)) *stand {
	t.Helper()
	s := &stand{t: t, timing: timing, agents: map[string]*machineAgent{}, load: map[string]float64{"n8n": 0.5},
		startTimeout: 2 * time.Minute, readyTimeout: 5 * time.Minute}
	s.policy = standPolicy(t)
	s.svcs = []leader.Service{{App: appName, Group: "app", Owner: "mesh"}}
	for _, f := range with {
		f(s)
	}
	s.svcs[0].Policy = s.policy.Services[0]
	mem := &flytest.Memory{OnStart: s.boot, OnStop: s.halt, OnFreeze: s.freeze}
	api, err := flytest.New(flytest.Options{Launcher: mem, Timing: s.timing, Apps: []string{appName}, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.api = api
	s.raft = &cluster{st: state.New()}
	for i := range 3 {
		s.voters = append(s.voters, s.newVoter(fmt.Sprintf("v%d", i)))
	}
	if _, err := api.Seed(flytest.Spec{App: appName, Name: "base", Config: s.config(), Start: true}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute) // the baseline has been up for a while
	return s
}

// config is that of every seeded machine.
func (s *stand) config() fly.MachineConfig {
	c := fly.MachineConfig{Image: "n8n", Metadata: map[string]string{"fly_process_group": "app", "fly_platform_version": "v2", "fly_release_version": "7"}}
	if s.record {
		c.Metadata[epoch.MetadataKey] = `{"epoch":1,"cluster":"1-stand"}`
	}
	return c
}

// seed adds machines beside the first one.
func (s *stand) seed(name string, n int, start bool) {
	s.t.Helper()
	for i := range n {
		if _, err := s.api.Seed(flytest.Spec{App: appName, Name: fmt.Sprintf("%s%d", name, i), Config: s.config(), Start: start}); err != nil {
			s.t.Fatal(err)
		}
	}
	time.Sleep(time.Minute)
}

// somebody is a client of the API that is not the mesh.
func (s *stand) somebody() *flyapi.Client { return s.somebodyAs("person") }

func (s *stand) somebodyAs(agent string) *flyapi.Client {
	s.t.Helper()
	c, err := flyapi.New(flyapi.Options{
		Tokens: map[string]flyapi.Token{appName: flyapi.NewToken("FlyV1 fm2_person")}, BaseURL: s.api.URL(), Transport: s.api.Transport(), UserAgent: agent,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// scale is a person's wish.
func (s *stand) scale(n int) {
	s.raft.person(state.Command{By: "ann", Scale: &state.Scale{Service: "n8n", Target: n}})
}

// mem is what the replicated state remembers of the service.
func (s *stand) mem() state.Service { return s.raft.state().Service("n8n") }

// verdict is the leader's newest.
func (s *stand) verdict() decide.Verdict {
	s.t.Helper()
	for _, v := range s.voters {
		if w, ok := v.leader.View(); ok {
			return w.Verdicts[0]
		}
	}
	return decide.Verdict{}
}

// blocked returns the detail of a guard that blocks now; empty: it does not.
func (s *stand) blocked(c decide.Code) string {
	for _, g := range s.verdict().Guards {
		if g.Code == c && g.Blocks {
			return g.Detail
		}
	}
	return ""
}

// happened counts the events of a kind.
func (s *stand) happened(kind string) (n int) {
	for _, e := range s.raft.state().Events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// close ends everything and lets the bubble run dry.
func (s *stand) close() {
	s.raft.elect("")
	for _, v := range s.voters {
		v.stop()
	}
	s.api.Close()
	for _, v := range s.voters {
		v.cloud.Close()
	}
	time.Sleep(time.Minute)
}

// offer sets how many machines' worth of work a service gets.
func (s *stand) offer(machines float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load["n8n"] = machines
}

// machines returns the machines of the app by state, past every cache.
func (s *stand) machines() []flytest.MachineInfo { return s.api.Machines() }

func (s *stand) started() (ids []string) {
	for _, m := range s.machines() {
		if m.State == "started" {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// await polls a condition each virtual second.
func (s *stand) await(what string, limit time.Duration, ok func() bool) time.Duration {
	s.t.Helper()
	from := time.Now()
	for !ok() {
		if time.Since(from) > limit {
			s.t.Fatalf("not within %s: %s\n%s", limit, what, s.story())
		}
		time.Sleep(time.Second)
	}
	return time.Since(from)
}

// story is what happened, for a failed test.
func (s *stand) story() string {
	var b strings.Builder
	for _, e := range s.raft.state().Events {
		fmt.Fprintf(&b, "%s %s %s %s %d->%d %s\n", e.At.Format("15:04:05"), e.Kind, e.Op, e.Machine, e.From, e.To, e.Reason)
	}
	s.mu.Lock()
	for _, m := range s.machines() {
		fmt.Fprintf(&b, "machine %s %s %s cordoned=%t", m.ID, m.Name, m.State, m.Cordoned)
		if a := s.agents[m.ID]; a != nil {
			fmt.Fprintf(&b, " agent mute=%t frozen=%t notReady=%t busy=%t draining=%t since %s", a.mute, a.frozen, a.notReady, a.busy, a.draining, a.since.Format("15:04:05"))
		}
		b.WriteString("\n")
	}
	s.mu.Unlock()
	v := s.verdict()
	fmt.Fprintf(&b, "%s verdict %s (%s): %s\n", v.At.Format("15:04:05"), v.Verdict, v.Reason.Code, v.Reason.Text)
	for _, c := range v.Counted {
		fmt.Fprintf(&b, "counted %s as %s: %s\n", c.Machine, c.As, c.Why)
	}
	if s.oracle != nil {
		b.WriteString(s.oracle.writes())
	}
	return b.String()
}

// machineAgent is the small agent of one in-memory machine.
type machineAgent struct {
	id, boot string
	cancel   context.CancelFunc
	done     chan struct{}
	draining bool
	mute     bool // reports nothing
	frozen   bool // suspended
	notReady bool
	busy     bool
	since    time.Time // of the newest change of what it would say
}

func (s *stand) boot(b flytest.Boot) {
	ctx, cancel := context.WithCancel(context.Background())
	a := &machineAgent{id: b.ID, boot: b.InstanceID + time.Now().String(), cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	a.notReady, a.since = s.dud, time.Now()
	s.agents[b.ID] = a
	holds := s.holds
	s.mu.Unlock()
	if holds != nil {
		holds.booted(b.ID)
	}
	go s.live(ctx, a)
}

func (s *stand) freeze(b flytest.Boot, frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.agents[b.ID]; a != nil {
		a.frozen, a.since = frozen, time.Now()
		if !frozen {
			a.draining = false
		}
	}
}

func (s *stand) halt(b flytest.Boot, _ bool) {
	s.mu.Lock()
	a := s.agents[b.ID]
	delete(s.agents, b.ID)
	s.lost = time.Now()
	holds := s.holds
	s.mu.Unlock()
	if holds != nil {
		holds.halted(b.ID)
	}
	if a != nil {
		a.cancel()
		<-a.done
	}
}

// live reports every interval: the service's work is spread over its machines
// that take traffic.
func (s *stand) live(ctx context.Context, a *machineAgent) {
	defer close(a.done)
	born := time.Now()
	t := time.NewTicker(every)
	defer t.Stop()
	for seq := uint64(1); ; seq++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		s.mu.Lock()
		open := 0
		for _, o := range s.agents {
			if !o.draining && !o.notReady && !o.frozen {
				open++
			}
		}
		r := report.Report{
			Machine: a.id, Boot: a.boot, Seq: seq, Service: "n8n", Uptime: time.Since(born), Readiness: report.Ready,
			CPU: report.Of(min(1, s.load["n8n"]/float64(max(open, 1)))), Memory: report.Of(0.3),
		}
		r.Busy = a.busy
		if a.notReady {
			r.Readiness, r.CPU = report.Booting, report.Of(0.1)
		}
		if a.draining {
			r.Readiness, r.CPU = report.Draining, report.Of(0.05)
		}
		mute := a.mute || a.frozen
		s.mu.Unlock()
		if mute {
			continue
		}
		for _, v := range s.voters {
			v.reports.Add(r)
		}
	}
}

// Drain, Undrain and Admit are the agents' side of leader.Agents.
func (s *stand) Drain(_ context.Context, id string, _ time.Duration) (leader.DrainResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[id]
	if a == nil || a.frozen {
		return leader.DrainResult{}, errors.New("no such agent")
	}
	a.draining, a.since = true, time.Now()
	if a.busy {
		return leader.DrainResult{Busy: "a job"}, nil
	}
	return leader.DrainResult{Done: true}, nil
}

func (s *stand) Undrain(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[id]
	if a == nil || a.frozen {
		return errors.New("no such agent")
	}
	a.draining, a.since = false, time.Now()
	return nil
}

func (s *stand) Admit(context.Context, string, string) error { return nil }

// voter is one machine that may lead. It is not itself part of the service, so
// that killing it takes no capacity away.
type voter struct {
	id      string
	cloud   *flyapi.Client
	reports *leader.Reports
	leader  *leader.Leader
	terms   chan leader.Term
	read    func(context.Context) error // the epoch record
	stop    func()
}

func (s *stand) newVoter(id string) *voter {
	next := s.api.Transport()
	if s.reach != nil {
		next = s.reach(next)
	}
	cloud, err := flyapi.New(flyapi.Options{
		Tokens: map[string]flyapi.Token{appName: flyapi.NewToken("FlyV1 fm2_stand")}, BaseURL: s.api.URL(), Transport: next, UserAgent: "flymesh-" + id,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	v := &voter{id: id, cloud: cloud, terms: make(chan leader.Term)}
	v.reports = leader.NewReports(every, s.policy, s.goals...)
	store := node{c: s.raft, id: id}
	if s.record {
		store.record = flyapi.NewArbiter(cloud, appName)
	}
	v.read = store.read
	o := leader.Options{
		Self: id, Services: s.svcs, Policy: s.policy, Store: store, Cloud: cloud, Agents: s, Holders: s, Reports: v.reports,
		Round: every, DrainTimeout: 30 * time.Second, StartTimeout: s.startTimeout, ReadyTimeout: s.readyTimeout,
		PinGrace: 2 * time.Minute, Logger: slog.New(slog.DiscardHandler),
	}
	if s.tweak != nil {
		s.tweak(&o)
	}
	v.leader = leader.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = v.reports.Run(ctx) })
	wg.Go(func() { _ = v.leader.Run(ctx, v.terms) })
	v.stop = func() { cancel(); wg.Wait() }
	return v
}

// lead makes a voter the leader: the one before loses its term at once.
func (s *stand) lead(id string) {
	t := s.raft.elect(id)
	if s.oracle != nil {
		s.oracle.elected(id)
	}
	for _, v := range s.voters {
		if v.id == id {
			v.terms <- t
		}
	}
}

// cluster is a working model of the replicated state: one log, one leader at a
// time, a proposal of anybody else is refused.
type cluster struct {
	hooks sync.Mutex // held while a hook runs: one at a time

	mu     sync.Mutex // guards all below
	st     *state.State
	index  uint64
	term   uint64
	leader string
	lost   uint64 // times that all state was lost
	cancel context.CancelFunc
	behind map[string]context.CancelFunc // ends terms whose leaders do not know that they are over
	before []func(c state.Command)       // told ahead of each commit
	after  []func(c state.Command)       // told of each commit before its proposer is
}

func (c *cluster) hook(before, after func(state.Command)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before, c.after = append(c.before, before), append(c.after, after)
}

func (c *cluster) also(after func(state.Command)) { c.hook(func(state.Command) {}, after) }

func (c *cluster) tell(all *[]func(state.Command), cmd state.Command) {
	c.mu.Lock()
	fs := slices.Clone(*all)
	c.mu.Unlock()
	c.hooks.Lock()
	defer c.hooks.Unlock()
	for _, f := range fs {
		f(cmd)
	}
}

// person commits what a person asks for.
func (c *cluster) person(cmd state.Command) {
	cmd.At = time.Now().UTC()
	b, err := cmd.Encode()
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	c.st.Apply(c.index, b)
}

func (c *cluster) elect(id string) leader.Term {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
	if wake := c.behind[id]; wake != nil {
		wake()
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.term, c.leader, c.cancel = c.term+1, id, cancel
	return leader.Term{Number: c.term, Epoch: 1 + c.lost, Context: ctx}
}

// unaware lets the leader's term go on for it, until the returned func is
// called or it is elected again, although others elect somebody else.
func (c *cluster) unaware() (wake func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel == nil {
		return func() {}
	}
	if c.behind == nil {
		c.behind = map[string]context.CancelFunc{}
	}
	wake, c.behind[c.leader], c.cancel = c.cancel, c.cancel, nil
	return wake
}

func (c *cluster) state() *state.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st.Clone()
}

var errNotLeader = errors.New("not the leader")

// node is one voter's handle on the cluster.
type node struct {
	c      *cluster
	id     string
	record *flyapi.Arbiter // nil: nobody keeps one
}

var _ leader.Store = node{}

func (n node) Propose(ctx context.Context, cmd state.Command) (state.Result, error) {
	b, err := cmd.Encode()
	if err != nil {
		return state.Result{}, err
	}
	n.c.tell(&n.c.before, cmd)
	n.c.mu.Lock()
	if n.c.leader != n.id || ctx.Err() != nil {
		n.c.mu.Unlock()
		return state.Result{}, errNotLeader
	}
	n.c.index++
	r := n.c.st.Apply(n.c.index, b)
	n.c.mu.Unlock()
	n.c.tell(&n.c.after, cmd)
	return r, ctx.Err()
}

func (n node) State() *state.State { return n.c.state() }

// read reads the epoch record as an action's verification does.
func (n node) read(ctx context.Context) error {
	if n.record == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := n.record.Read(ctx)
	if err == nil && r.Zero() { // somebody has destroyed all machines that had it
		err = n.record.Write(leader.WithCheck(ctx, func(context.Context) error { return nil }), epoch.Record{Epoch: 1, Cluster: "1-stand"})
	}
	return err
}

func (n node) Verify(ctx context.Context) error {
	if err := n.read(ctx); err != nil {
		return err
	}
	return n.Leads(ctx)
}

// Leads implements leader.Store.
func (n node) Leads(ctx context.Context) error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.c.leader != n.id {
		return errNotLeader
	}
	return ctx.Err()
}

func (n node) MayStop(context.Context, string) error { return nil }

func (n node) Roles() ([]string, string) { return []string{"v0", "v1", "v2"}, n.id }

// bubble runs a test in virtual time.
func bubble(t *testing.T, timing flytest.Timing, f func(s *stand), with ...func(*stand)) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, timing, with...)
		defer s.close()
		f(s)
	})
}

// calls counts the requests of one action.
func (s *stand) calls(action string) (n int) {
	for _, r := range s.api.Requests() {
		if r.Action == action {
			n++
		}
	}
	return n
}
