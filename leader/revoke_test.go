package leader_test

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
)

// Revoke is the agents' side of leader.Agents.
func (s *stand) Revoke(context.Context, string, string) error { return nil }

// told are agents that remember what they were told of admissions.
type told struct {
	leader.Agents
	mu    sync.Mutex // guards words
	words []string
}

func (a *told) Admit(_ context.Context, id, _ string) error  { a.add("admit " + id); return nil }
func (a *told) Revoke(_ context.Context, id, _ string) error { a.add("revoke " + id); return nil }

func (a *told) add(w string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.words); n == 0 || a.words[n-1] != w { // the word of an admission is repeated
		a.words = append(a.words, w)
	}
}

func (a *told) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.words)
}

// A machine that lost its model loses its admission and gets it back when it
// has loaded again; one that is gone is forgotten; a change of leaders and a
// single lost look take nothing away.
func TestAdmissionIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agents := &told{}
		s := newStand(t, flytest.Timing{}, func(s *stand) {
			s.svcs[0].Gated = true
			s.tweak = func(o *leader.Options) { agents.Agents, o.Agents = s, agents }
		})
		defer s.close()
		s.lead("v0")
		id := s.started()[0]
		admitted := func() bool { return s.raft.state().Admitted[id] != "" }
		s.await("admitted", time.Minute, admitted)
		setReady := func(ok bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.agents[id].notReady = !ok
		}
		index := len(s.raft.state().Events)

		setReady(false)
		time.Sleep(every + time.Second) // one round sees it
		setReady(true)
		time.Sleep(time.Minute)
		s.lead("v1")
		time.Sleep(time.Minute)
		for _, e := range s.raft.state().Events[index:] {
			if e.Kind == "revoke" || e.Kind == "admit" {
				t.Errorf("%s %s: %s", e.Kind, e.Machine, e.Reason)
			}
		}

		setReady(false)
		took := s.await("revoked", time.Minute, func() bool { return !admitted() })
		time.Sleep(time.Second)
		if w := agents.list(); len(w) == 0 || w[len(w)-1] != "revoke "+id {
			t.Errorf("the machine was told %q", w)
		}
		setReady(true)
		again := s.await("admitted again", time.Minute, admitted)
		t.Logf("revoked after %v, admitted again %v after it had loaded; told %q", took, again, agents.list())

		req, err := http.NewRequest(http.MethodDelete, s.api.URL()+"/v1/apps/"+appName+"/machines/"+id+"?force=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer fm2_stand")
		resp, err := (&http.Client{Transport: s.api.Transport()}).Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("destroy: %v, %v", resp, err)
		}
		resp.Body.Close()
		s.await("forgotten", 2*time.Minute, func() bool { return !admitted() })
	})
}
