// Package cloudtest holds what every leader.Cloud must do, as one function
// that its implementations pass.
//
// The contract: Conform opens a fresh world for each promise, runs them in
// parallel and waits by polling, so that it works against real HTTP as well as
// in memory.
package cloudtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"flymesh/leader"
)

// World is a Cloud with what a promise needs around it.
type World struct {
	Cloud    leader.Cloud
	App      string // has machines that nobody else touches
	Template string // a started machine of the app, without a volume
	// LoseCreate makes the API do the next create but lose its answer.
	LoseCreate func(t *testing.T)
}

// patience is how long the API may take to bring a machine into a state.
const patience = 20 * time.Second

// noMachine is the ID of a machine that does not exist.
const noMachine = "00000000000000"

// Conform checks the promises of leader.Cloud.
func Conform(t *testing.T, open func(t *testing.T) World) {
	for _, p := range []struct {
		name  string
		check func(t *testing.T, w World)
	}{
		{"list_and_get_agree", listAndGet},
		{"create_is_seen_at_once", createSeen},
		{"create_is_idempotent_by_name", createTwice},
		{"create_leaves_the_template_behind", createCopies},
		{"a_name_of_another_operation_is_not_adopted", createForeign},
		{"a_lost_answer_is_unknown_and_the_machine_exists", createLost},
		{"start_and_stop_are_idempotent", startStop},
		{"cordon_is_idempotent", cordon},
		{"metadata_is_set_and_removed", metadata},
		{"what_does_not_exist_is_gone", gone},
		{"a_dead_context_ends_a_call", deadContext},
		{"a_failed_check_sends_nothing", failedCheck},
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			p.check(t, open(t))
		})
	}
}

func listAndGet(t *testing.T, w World) {
	m := get(t, w, w.Template)
	if m.App != w.App || m.State != "started" || !m.HostOK || m.Name == "" || m.Region == "" || m.Group == "" {
		t.Errorf("get template: got %+v", m)
	}
	if m.Started.IsZero() || m.Created.IsZero() || m.Started.Before(m.Created) {
		t.Errorf("created %v, started %v: want both, in this order", m.Created, m.Started)
	}
	l, ok := find(list(t, w), w.Template)
	if !ok || l.Name != m.Name || l.State != m.State || l.InstanceID != m.InstanceID || !l.Started.Equal(m.Started) {
		t.Errorf("list says %+v, get says %+v", l, m)
	}
}

func createSeen(t *testing.T, w World) {
	m := create(t, w, request(w, "seen"))
	if m.ID == "" || m.Name != "flymesh-seen" || m.App != w.App {
		t.Fatalf("created %+v", m)
	}
	if _, ok := find(list(t, w), m.ID); !ok {
		t.Error("the next listing lacks the new machine")
	}
	await(t, w, m.ID, "started")
}

func createTwice(t *testing.T, w World) {
	a := create(t, w, request(w, "twice"))
	b := create(t, w, request(w, "twice"))
	if a.ID != b.ID {
		t.Errorf("the same request created %s and then %s", a.ID, b.ID)
	}
	if n := named(list(t, w), "flymesh-twice"); n != 1 {
		t.Errorf("%d machines have the name, want 1", n)
	}
}

func createCopies(t *testing.T, w World) {
	tpl := get(t, w, w.Template)
	r := request(w, "copy")
	r.Region = ""
	m := create(t, w, r)
	if m.Group != tpl.Group || m.Region != tpl.Region || m.Release != tpl.Release {
		t.Errorf("got group %q region %q release %q, want the template's %q %q %q", m.Group, m.Region, m.Release, tpl.Group, tpl.Region, tpl.Release)
	}
	if m.Metadata[leader.MetaOp] != r.Op || m.Metadata[leader.MetaPrimary] != "" || m.Mounts || m.Standby || m.Special {
		t.Errorf("created %+v: want the operation and nothing of the template's own", m)
	}
}

func createForeign(t *testing.T, w World) {
	r := request(w, "foreign")
	create(t, w, r)
	r.Op = "9-9"
	if m, err := w.Cloud.Create(t.Context(), r); err == nil {
		t.Errorf("operation %s adopted machine %s of another", r.Op, m.ID)
	}
}

func createLost(t *testing.T, w World) {
	w.LoseCreate(t)
	r := request(w, "lost")
	_, err := w.Cloud.Create(t.Context(), r)
	if err == nil || leader.FaultOf(err) != leader.Unknown {
		t.Fatalf("create without an answer: got %v, want fault %s", err, leader.Unknown)
	}
	again := create(t, w, r)
	if again.Name != r.Name {
		t.Errorf("adopted %+v", again)
	}
	if n := named(list(t, w), r.Name); n != 1 {
		t.Errorf("%d machines have the name, want 1", n)
	}
}

func startStop(t *testing.T, w World) {
	ctx := t.Context()
	for _, step := range []struct {
		name, want string
		do         func() error
	}{
		{"start a started one", "started", func() error { return w.Cloud.Start(ctx, w.App, w.Template) }},
		{"stop", "stopped", func() error { return w.Cloud.Stop(ctx, w.App, w.Template, 0) }},
		{"stop again", "stopped", func() error { return w.Cloud.Stop(ctx, w.App, w.Template, time.Second) }},
		{"start, and again while it starts", "started", func() error {
			return errors.Join(untilDone(w.Cloud.Start, ctx, w), w.Cloud.Start(ctx, w.App, w.Template))
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		await(t, w, w.Template, step.want)
	}
}

// untilDone repeats a call that comes too early after the one before.
func untilDone(f func(context.Context, string, string) error, ctx context.Context, w World) error {
	for {
		err := f(ctx, w.App, w.Template)
		if err == nil || leader.FaultOf(err) != leader.TooEarly || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func cordon(t *testing.T, w World) {
	ctx := t.Context()
	for _, step := range []struct {
		do   func(context.Context, string, string) error
		want bool
	}{{w.Cloud.Cordon, true}, {w.Cloud.Cordon, true}, {w.Cloud.Uncordon, false}, {w.Cloud.Uncordon, false}} {
		if err := step.do(ctx, w.App, w.Template); err != nil {
			t.Fatalf("cordon %v: %v", step.want, err)
		}
		if got := get(t, w, w.Template).Cordoned; got != step.want {
			t.Errorf("cordoned is %v, want %v", got, step.want)
		}
	}
}

func metadata(t *testing.T, w World) {
	before := get(t, w, w.Template)
	for _, v := range []string{"one", "two words", ""} {
		if err := w.Cloud.SetMetadata(t.Context(), w.App, w.Template, "flymesh_test", v); err != nil {
			t.Fatalf("set %q: %v", v, err)
		}
		m, _ := find(list(t, w), w.Template)
		if got, ok := m.Metadata["flymesh_test"]; got != v || ok != (v != "") {
			t.Errorf("got %q (%v), want %q", got, ok, v)
		}
	}
	if err := w.Cloud.SetMetadata(t.Context(), w.App, w.Template, "flymesh_test", ""); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
	if after := get(t, w, w.Template); after.InstanceID != before.InstanceID {
		t.Error("metadata changed the machine's version")
	}
}

func gone(t *testing.T, w World) {
	ctx := t.Context()
	_, err := w.Cloud.Get(ctx, w.App, noMachine)
	for name, err := range map[string]error{
		"get":      err,
		"start":    w.Cloud.Start(ctx, w.App, noMachine),
		"stop":     w.Cloud.Stop(ctx, w.App, noMachine, 0),
		"cordon":   w.Cloud.Cordon(ctx, w.App, noMachine),
		"uncordon": w.Cloud.Uncordon(ctx, w.App, noMachine),
		"metadata": w.Cloud.SetMetadata(ctx, w.App, noMachine, "k", "v"),
	} {
		if err == nil || leader.FaultOf(err) != leader.Gone {
			t.Errorf("%s: got %v, want fault %s", name, err, leader.Gone)
		}
	}
	r := request(w, "orphan")
	r.Template = noMachine
	if _, err := w.Cloud.Create(ctx, r); err == nil || leader.FaultOf(err) != leader.Gone {
		t.Errorf("create from no template: got %v, want fault %s", err, leader.Gone)
	}
}

func deadContext(t *testing.T, w World) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Cloud.List(ctx, w.App); err == nil {
		t.Error("list answered")
	}
	if err := w.Cloud.Start(ctx, w.App, w.Template); err == nil {
		t.Error("start answered")
	}
}

func failedCheck(t *testing.T, w World) {
	asked := 0
	ctx := leader.WithCheck(t.Context(), func(context.Context) error {
		asked++
		return errors.New("somebody else leads")
	})
	_, err := w.Cloud.Create(ctx, request(w, "unchecked"))
	for name, err := range map[string]error{
		"create":   err,
		"start":    w.Cloud.Start(ctx, w.App, w.Template),
		"stop":     w.Cloud.Stop(ctx, w.App, w.Template, 0),
		"suspend":  w.Cloud.Suspend(ctx, w.App, w.Template),
		"cordon":   w.Cloud.Cordon(ctx, w.App, w.Template),
		"uncordon": w.Cloud.Uncordon(ctx, w.App, w.Template),
		"metadata": w.Cloud.SetMetadata(ctx, w.App, w.Template, "k", "v"),
	} {
		if err == nil || leader.FaultOf(err) != leader.Retry {
			t.Errorf("%s: got %v, want fault %s", name, err, leader.Retry)
		}
	}
	if asked != 7 {
		t.Errorf("the check was asked %d times for 7 calls", asked)
	}
	if m := get(t, w, w.Template); m.State != "started" || m.Cordoned || m.Metadata["k"] != "" {
		t.Errorf("the machine is %+v: something was done", m)
	}
	if n := named(list(t, w), "flymesh-unchecked"); n != 0 {
		t.Errorf("%d machines were created", n)
	}
}

func request(w World, name string) leader.CreateRequest {
	return leader.CreateRequest{App: w.App, Name: "flymesh-" + name, Template: w.Template, Op: "1-" + name}
}

func create(t *testing.T, w World, r leader.CreateRequest) leader.Machine {
	t.Helper()
	m, err := w.Cloud.Create(t.Context(), r)
	if err != nil {
		t.Fatalf("create %s: %v", r.Name, err)
	}
	return m
}

func get(t *testing.T, w World, id string) leader.Machine {
	t.Helper()
	m, err := w.Cloud.Get(t.Context(), w.App, id)
	if err != nil {
		t.Fatalf("get %s: %v", id, err)
	}
	return m
}

func list(t *testing.T, w World) []leader.Machine {
	t.Helper()
	ms, err := w.Cloud.List(t.Context(), w.App)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	return ms
}

func find(ms []leader.Machine, id string) (leader.Machine, bool) {
	for _, m := range ms {
		if m.ID == id {
			return m, true
		}
	}
	return leader.Machine{}, false
}

func named(ms []leader.Machine, name string) (n int) {
	for _, m := range ms {
		if m.Name == name {
			n++
		}
	}
	return n
}

func await(t *testing.T, w World, id, state string) {
	t.Helper()
	last := ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if last = get(t, w, id).State; last == state {
			return
		}
	}
	t.Fatalf("machine %s is %s after %s, want %s", id, last, patience, state)
}
