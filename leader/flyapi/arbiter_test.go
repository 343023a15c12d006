package flyapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore"
	"flymesh/raftstore/epoch"
)

var _ raftstore.Arbiter = (*Arbiter)(nil)

// record returns a record of five voters.
func record(n uint64, cluster string) epoch.Record {
	r := epoch.Record{Epoch: n, Cluster: cluster, At: time.Now()}
	for i := range 5 {
		r.Voters = append(r.Voters, epoch.Voter{App: testApp, Machine: fmt.Sprintf("d8d9%010d", i), Boot: strings.Repeat("f", 32), BootAt: time.Now()})
	}
	r.Founder = r.Voters[0]
	return r
}

// fleet seeds machines of the anchor app and returns their IDs in order.
func fleet(t *testing.T, s *flytest.Server, n int) []string {
	t.Helper()
	var ids []string
	for range n {
		ids = append(ids, seed(t, s, flytest.Spec{}).ID)
	}
	slices.Sort(ids)
	return ids
}

func metadataOf(t *testing.T, s *flytest.Server, id string) string {
	t.Helper()
	c := newClient(t, Options{Transport: s.Transport()})
	m, err := c.get(t.Context(), testApp, id)
	if err != nil {
		t.Fatal(err)
	}
	return m.GetConfig().Metadata[epoch.MetadataKey]
}

func TestArbiterRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := emulator(t, flytest.Options{Timing: flytest.Timing{ListLag: 10 * time.Second}})
		ids := fleet(t, s, 5)
		time.Sleep(time.Minute)
		c := newClient(t, Options{Transport: s.Transport(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
		a := NewArbiter(c, testApp)
		ctx := t.Context()
		if r, err := a.Read(ctx); err != nil || r.Epoch != 0 {
			t.Errorf("first read: %+v, %v", r, err)
		}
		one := record(1, "1-aaaa")
		if err := a.Write(ctx, one); err != nil {
			t.Fatal(err)
		}
		// Another client has no cookie: its listing is late, the record is not.
		b := NewArbiter(newClient(t, Options{Transport: s.Transport()}), testApp)
		got, err := b.Read(ctx)
		if err != nil || !sameRecord(got, compact(one)) {
			t.Errorf("read %+v, %v, want %+v", got, err, one)
		}
		for i, id := range ids {
			if has := metadataOf(t, s, id) != ""; has != (i < anchors) {
				t.Errorf("anchor %d has the record: %v", i, has)
			}
		}
		if n := len(metadataOf(t, s, ids[0])); n > 1200 {
			t.Errorf("the record of five voters has %d bytes", n)
		}

		// The lowest anchor goes: nothing is lost.
		time.Sleep(10 * time.Second)
		if err := c.Destroy(ctx, testApp, ids[0]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got, err := b.Read(ctx); err != nil || got.Cluster != "1-aaaa" {
			t.Errorf("with the first anchor gone: %+v, %v", got, err)
		}

		// The same cluster may go on, an earlier or another one of the epoch may not.
		again := one
		again.At = time.Now()
		again.Voters = again.Voters[:3]
		if err := a.Write(ctx, again); err != nil {
			t.Errorf("update: %v", err)
		}
		late := again
		late.At = late.At.Add(-time.Hour) // of a leader whose clock is behind
		late.Voters = late.Voters[:1]
		if err := a.Write(ctx, late); err != nil {
			t.Errorf("update by a clock that is behind: %v", err)
		}
		if got, err := b.Read(ctx); err != nil || !got.Same(late) {
			t.Errorf("after that: %+v, %v; want %+v", got, err, late)
		}
		two := record(2, "2-bbbb")
		if err := b.Write(ctx, two); err != nil {
			t.Errorf("next epoch: %v", err)
		}
		time.Sleep(5 * time.Second) // the emulator's rate limit is one for all clients
		for _, r := range []epoch.Record{record(1, "1-aaaa"), record(2, "2-aaaa"), record(2, "2-cccc")} {
			time.Sleep(5 * time.Second)
			if err := a.Write(ctx, r); !errors.Is(err, ErrSuperseded) {
				t.Errorf("write %d %s: got %v, want superseded", r.Epoch, r.Cluster, err)
			}
		}
		if got, err := a.Read(ctx); err != nil || got.Cluster != "2-bbbb" {
			t.Errorf("in the end: %+v, %v", got, err)
		}

		// Rubbish on one machine hides nothing.
		if err := c.SetMetadata(ctx, testApp, ids[4], epoch.MetadataKey, `{"epoch":99`); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got, err := a.Read(ctx); err != nil || got.Cluster != "2-bbbb" {
			t.Errorf("beside rubbish: %+v, %v", got, err)
		}
		if !strings.Contains(log.String(), "malformed epoch record skipped") {
			t.Error("rubbish is not logged")
		}
	})
}

// TestArbiterRace writes two records of one epoch to the anchors in a mix, as
// two founders that both believe in their lease may.
func TestArbiterRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := emulator(t, flytest.Options{})
		ids := fleet(t, s, 3)
		c := newClient(t, Options{Transport: s.Transport()})
		for i, cluster := range []string{"5-aaaa", "5-cccc", "5-bbbb"} {
			text, err := json.Marshal(record(5, cluster))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetMetadata(t.Context(), testApp, ids[i], epoch.MetadataKey, string(text)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if r, err := NewArbiter(newClient(t, Options{Transport: s.Transport()}), testApp).Read(t.Context()); err != nil || r.Cluster != "5-cccc" {
				t.Errorf("read %+v, %v; want the same cluster for everybody", r, err)
			}
		}
	})
}

// TestArbiterFaults writes while anchors fail and answers get lost.
func TestArbiterFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault flytest.Fault
		ok    bool
	}{
		"one anchor fails":   {flytest.Fault{Action: "set_metadata", Method: "POST", Path: "metadata/*", Count: 1, Status: 500}, true},
		"answers are lost":   {flytest.Fault{Method: "POST", Path: "metadata/*", Drop: "after"}, true},
		"nothing is written": {flytest.Fault{Method: "POST", Path: "metadata/*", Status: 503}, false},
		"nothing is read":    {flytest.Fault{Method: "GET", Status: 503}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := emulator(t, flytest.Options{})
				fleet(t, s, 3)
				c.fault.Action = ""
				if err := s.AddFaults(c.fault); err != nil {
					t.Fatal(err)
				}
				a := NewArbiter(newClient(t, Options{Transport: s.Transport()}), testApp)
				err := a.Write(t.Context(), record(1, "1-aaaa"))
				if (err == nil) != c.ok {
					t.Errorf("write: %v, want success %v", err, c.ok)
				}
				s.ClearFaults()
				if r, rerr := a.Read(t.Context()); rerr != nil || (r.Epoch == 1) != c.ok {
					t.Errorf("read: %+v, %v", r, rerr)
				}
			})
		})
	}
}

func TestArbiterLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := emulator(t, flytest.Options{})
		ids := fleet(t, s, 3)
		a := NewArbiter(newClient(t, Options{Transport: s.Transport()}), testApp)
		b := NewArbiter(newClient(t, Options{Transport: s.Transport()}), testApp)
		ctx := t.Context()
		release, err := a.Lease(ctx, 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := b.Lease(ctx, 20*time.Second); leader.FaultOf(err) != leader.Leased || time.Since(start) > time.Second {
			t.Errorf("second lease: %v after %s, want fault leased at once", err, time.Since(start))
		}
		n := 0
		for _, r := range s.Requests() {
			if r.Method == "POST" && strings.HasSuffix(r.Path, ids[0]+"/lease") {
				n++
			}
		}
		if n != 2 {
			t.Errorf("%d lease requests to the lowest machine, want 2", n)
		}
		if err := release(ctx); err != nil {
			t.Error(err)
		}
		if err := release(ctx); err != nil {
			t.Errorf("second release: %v", err)
		}
		release, err = b.Lease(ctx, 20*time.Second)
		if err != nil {
			t.Fatalf("lease after release: %v", err)
		}
		time.Sleep(21 * time.Second)
		if _, err := a.Lease(ctx, 20*time.Second); err != nil {
			t.Errorf("lease after the end of another: %v", err)
		}
		if err := release(ctx); err == nil {
			t.Error("a lease that somebody else holds was released")
		}
	})
}

func TestAnchors(t *testing.T) {
	m := func(id, group, state string, host fly.HostStatus) wireMachine {
		w := wireMachine{Machine: fly.Machine{ID: id, State: state, HostStatus: host, Config: &fly.MachineConfig{}}}
		w.Config.Metadata = map[string]string{"fly_process_group": group}
		return w
	}
	got := anchorsOf(testApp, []wireMachine{
		m("e", "app", "stopped", "ok"), m("d", "app", "started", "ok"), m("c", "app", "started", "unreachable"),
		m("b", "fly_app_release_command", "started", "ok"), m("a", "app", "destroying", "ok"), m("f", "app", "suspended", ""),
	})
	if want := []string{"d", "e", "f"}; !slices.Equal(got, want) {
		t.Errorf("anchors are %v, want %v", got, want)
	}
}
