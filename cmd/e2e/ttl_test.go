package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// overlap is the time in which more than one holder worked, in steps of 100 ms.
func overlap(spans []span) time.Duration {
	const step = int64(100 * time.Millisecond)
	at := map[int64]map[uint64]bool{}
	for _, s := range spans {
		for _, t := range s.at {
			if at[t/step] == nil {
				at[t/step] = map[uint64]bool{}
			}
			at[t/step][s.token] = true
		}
	}
	n := 0
	for _, who := range at {
		if len(who) > 1 {
			n++
		}
	}
	// One work may end and the next begin within a step.
	return time.Duration(max(0, n-len(spans)+1)) * time.Duration(step)
}

// TestBesideTTL runs the same two faults on agentctl lock and on a wrapper
// that trusts its lease: the holder cut off from who grants for 40 s, and the
// holder frozen for 30 s, each while another waits for the lock.
func TestBesideTTL(t *testing.T) {
	long(t)
	const first, second = 70 * time.Second, 25 * time.Second
	for _, fault := range []string{"cut off", "frozen"} {
		t.Run(fault, func(t *testing.T) {
			var wg sync.WaitGroup
			var naive time.Duration
			wg.Go(func() { naive = naiveOverlap(t, fault, first, second) })
			m := newMesh(t, config)
			s := m.settle(30 * time.Second)
			a, _ := m.pick("agent", s.Leader.Machine)
			b, _ := m.pick("voter", s.Leader.Machine)
			file := filepath.Join(t.TempDir(), "oracle")
			pid, endA := m.lock(a, "work", time.Minute, beats(file, first))
			m.until("the first holder works", time.Minute, func() bool { return worked(t, file) == 1 })
			_, endB := m.lock(b, "work", 2*time.Minute, beats(file, second))
			time.Sleep(time.Second)
			stopped := children(pid)
			pause := 30 * time.Second
			if fault == "cut off" { // the holder's agent is silent, its work is not
				stopped, pause = []int{m.procs(a).mesh}, 40*time.Second
			}
			for _, p := range stopped {
				_ = syscall.Kill(p, syscall.SIGSTOP)
			}
			time.Sleep(pause)
			for _, p := range stopped {
				_ = syscall.Kill(p, syscall.SIGCONT) // some have been killed
			}
			codeA, codeB := endA(), endB()
			wg.Wait()
			all := oracle(t, file)
			if len(all) != 2 || codeB != 0 {
				t.Fatalf("%d holders worked, exit codes %d and %d", len(all), codeA, codeB)
			}
			handed := time.Duration(all[1].at[0] - all[0].at[len(all[0].at)-1])
			if d := overlap(all); d > 0 {
				t.Errorf("two worked at one time for %s", d)
			}
			t.Logf("%s: agentctl lock: overlap %s, first ended with %d, the next began %s after its last beat; trusting the lease: overlap %s",
				fault, overlap(all), codeA, handed.Round(100*time.Millisecond), naive)
			// One that is thawed asks at once, and works only until it is answered.
			if naive == 0 && fault == "cut off" {
				t.Error("the naive wrapper shows no overlap: the faults are none")
			}
		})
	}
}

// ttlServer grants one lock by leases of 15 s.
type ttlServer struct {
	mu     sync.Mutex // guards all below
	holder string
	until  time.Time
	token  int
	cut    string // who cannot reach it
}

// ServeHTTP implements http.Handler: /?id=NAME acquires or renews.
func (s *ttlServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.FormValue("id")
	switch {
	case id == s.cut:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case id != s.holder && time.Now().Before(s.until):
		w.WriteHeader(http.StatusConflict)
		return
	case id != s.holder:
		s.token++
	}
	s.holder, s.until = id, time.Now().Add(15*time.Second)
	fmt.Fprint(w, s.token)
}

// naiveScript is a wrapper that trusts its lease: it renews each 5 s, goes on
// when nobody answers, and ends its work when it is told that another has the
// lock.
const naiveScript = `
until T=$(curl -sf "$URL"); do sleep 1; done
FLYMESH_LOCK_FENCE=$T sh -c "$1" & W=$!
while sleep 5; kill -0 $W 2>/dev/null; do
  [ "$(curl -s -o /dev/null -w '%{http_code}' "$URL")" = 409 ] && kill -9 $W && exit 70
done; exit 0`

func naiveOverlap(t *testing.T, fault string, first, second time.Duration) time.Duration {
	s := &ttlServer{}
	srv := httptest.NewServer(s)
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "naive")
	run := func(id string, work time.Duration) *exec.Cmd {
		c := exec.Command("sh", "-c", naiveScript, "naive", beats(file, work)[2])
		c.Env = append(os.Environ(), "URL="+srv.URL+"/?id="+id)
		if err := c.Start(); err != nil {
			t.Error(err)
		}
		return c
	}
	a := run("a", first)
	for end := time.Now().Add(20 * time.Second); worked(t, file) == 0 && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	b := run("b", second)
	time.Sleep(time.Second)
	if fault == "cut off" {
		s.mu.Lock()
		s.cut = "a"
		s.mu.Unlock()
		time.Sleep(40 * time.Second)
		s.mu.Lock()
		s.cut = ""
		s.mu.Unlock()
	} else {
		all := children(a.Process.Pid)
		for _, p := range all {
			_ = syscall.Kill(p, syscall.SIGSTOP)
		}
		time.Sleep(30 * time.Second)
		for _, p := range all {
			_ = syscall.Kill(p, syscall.SIGCONT)
		}
	}
	_ = b.Wait()
	for _, p := range children(a.Process.Pid) {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	_ = a.Wait()
	return overlap(oracle(t, file))
}
