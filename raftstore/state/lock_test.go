package state

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestLocksAgainstModel holds the lock table against a naive one: a name has at
// most one holder, each grant a token greater than all before, and what does
// not fit changes nothing. The state goes through a snapshot at every entry.
func TestLocksAgainstModel(t *testing.T) {
	type hold struct{ token, session, machine string }
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		model := map[string]hold{}
		newest := map[string]uint64{}
		known := LockPolicy("")
		apply(t, s, 1, elect(1, "m1"))
		for i := uint64(2); i < 40; i++ {
			lock := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "lock")
			session := rapid.SampledFrom([]string{"s1", "s2", "s3"}).Draw(t, "session")
			h := Holder{Machine: "m" + session, Boot: "b", Session: session}
			policy := rapid.SampledFrom([]LockPolicy{Fenced, Expiry}).Draw(t, "policy")
			token := model[lock].token
			if rapid.IntRange(0, 3).Draw(t, "odd token") == 0 {
				token = fmt.Sprintf("1-%d", rapid.IntRange(1, 40).Draw(t, "index"))
			}
			c := Command{At: t0, By: "m1", Term: 1}
			switch rapid.IntRange(0, 6).Draw(t, "kind") {
			case 0, 1, 2:
				c.Grant = &Grant{Lock: lock, Policy: policy, Holder: h}
			case 3, 4:
				c.Free = &Free{Lock: lock, Token: token, Cause: rapid.SampledFrom([]Cause{Released, Ended, Stopped, Expired, Forced, "odd"}).Draw(t, "cause")}
			case 5:
				c.Rebuilt = &Rebuilt{Epoch: 1, Proven: rapid.Bool().Draw(t, "proven")}
			case 6:
				c.Begin = &Begin{Service: session, Kind: OpDown, Machine: h.Machine}
			}
			before, _ := s.Snapshot()
			old := s.Clone()
			r := apply(t, s, i, c)
			was, held := model[lock], model[lock].token != ""
			switch {
			case c.Grant != nil:
				_, removing := old.OpOf(session)
				ok := held && was.session == session || !held && !removing && (known == Fenced || known == Expiry && policy == Expiry)
				if ok != (r.Rejection == "") {
					t.Fatalf("grant %s to %s: %+v, want granted %v (holder %q, known %q)", lock, session, r, ok, was.session, known)
				}
				if ok && !held {
					if Fence(r.Token) <= newest[lock] {
						t.Fatalf("token %s after %d", r.Token, newest[lock])
					}
					newest[lock] = Fence(r.Token)
					model[lock] = hold{r.Token, session, h.Machine}
				}
				if ok && held && r.Token != was.token {
					t.Fatalf("granted again with %s, was %s", r.Token, was.token)
				}
			case c.Free != nil:
				ok := held && token == was.token && c.Free.Cause != "odd" && (c.Free.Cause != Expired || old.Locks[lock].Policy == Expiry)
				if ok != (r.Rejection == "") {
					t.Fatalf("free %+v: %+v, want freed %v", c.Free, r, ok)
				}
				if ok {
					delete(model, lock)
				}
			case c.Rebuilt != nil && c.Rebuilt.Proven:
				known = Fenced
			case c.Rebuilt != nil && known == "":
				known = Expiry
			case c.Begin != nil && len(old.HeldBy(h.Machine)) > 0 && r.Rejection == "":
				t.Fatalf("removal of %s began while it holds %v", h.Machine, old.HeldBy(h.Machine))
			}
			if len(s.Locks) != len(model) {
				t.Fatalf("%d locks, the model has %d", len(s.Locks), len(model))
			}
			after, err := s.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			if r.Rejection != "" {
				s.Index = old.Index
				if same, _ := s.Snapshot(); !bytes.Equal(before, same) {
					t.Fatalf("rejected entry changed the state:\n%s\n%s", before, same)
				}
				s.Index = i
			}
			if s, err = Restore(after); err != nil {
				t.Fatal(err)
			}
			if again, _ := s.Snapshot(); !bytes.Equal(after, again) {
				t.Fatalf("bytes differ after restore:\n%s\n%s", after, again)
			}
		}
	})
}

func TestAdoptedLocksKeepTheirToken(t *testing.T) {
	s := New()
	apply(t, s, 1, Command{At: t0, Term: 1, By: "m1", Elect: &Elect{Machine: "m1", Epoch: 3}})
	h := Holder{Machine: "m2", Boot: "b", Session: "session1"}
	old := Lock{Name: "a", Token: "2-90", Policy: Fenced, Holder: h}
	if r := apply(t, s, 2, Command{At: t0, Term: 1, By: "m1", Adopt: &Adopt{Lock: old}}); r.Token != "2-90" || r.Rejection != "" {
		t.Fatalf("adopt = %+v", r)
	}
	future := Lock{Name: "b", Token: "3-9", Policy: Fenced, Holder: h}
	if r := apply(t, s, 3, Command{At: t0, Term: 1, By: "m1", Adopt: &Adopt{Lock: future}}); r.Rejection != Stale {
		t.Errorf("adopt of this epoch's token = %+v, want stale", r)
	}
	apply(t, s, 4, Command{At: t0, Term: 1, By: "m1", Rebuilt: &Rebuilt{Epoch: 3, Proven: true}})
	if r := apply(t, s, 5, Command{At: t0, Term: 1, By: "m1", Grant: &Grant{Lock: "a", Policy: Fenced, Holder: Holder{Machine: "m3", Session: "session2"}}}); r.Rejection != Conflict {
		t.Errorf("grant of an adopted lock = %+v, want a conflict", r)
	}
	apply(t, s, 6, Command{At: t0, Term: 1, By: "m1", Free: &Free{Lock: "a", Token: "2-90", Cause: Released}})
	r := apply(t, s, 7, Command{At: t0, Term: 1, By: "m1", Grant: &Grant{Lock: "a", Policy: Fenced, Holder: Holder{Machine: "m3", Session: "session2"}}})
	if Fence(r.Token) <= Fence("2-90") {
		t.Errorf("token %s is not greater than 2-90", r.Token)
	}
}
