package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
)

// roleApp is a program of a role-aware command: it signs twenty times a second
// in the file of its machine and, as the primary, in that of all primaries. It
// leaves behind one that does the same, in its own session, and ends only when
// it is killed. On SIGTERM it takes a moment to end.
func roleApp(dir string) {
	start, pid := time.Now().UnixNano(), os.Getpid()
	if of := os.Getenv("ROLE_APP_OF"); of != "" {
		_, _ = fmt.Sscan(of, &pid, &start)
		signal.Ignore(syscall.SIGTERM)
	} else {
		c := exec.Command("/proc/self/exe", os.Args[1:]...)
		c.Env = append(os.Environ(), fmt.Sprintf("ROLE_APP_OF=%d %d", pid, start))
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err != nil {
			panic(err)
		}
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	sign := func(file string, token any) {
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		defer f.Close()
		fmt.Fprintf(f, "%v %d %d %d -\n", token, pid, start, time.Now().UnixNano())
	}
	var left <-chan time.Time
	for t := time.NewTicker(50 * time.Millisecond); ; {
		if os.Getenv(api.RoleEnv) == "primary" {
			sign("primary", os.Getenv(api.LockFenceEnv))
		}
		sign("machine-"+os.Getenv("FLY_MACHINE_ID"), start)
		select {
		case <-t.C:
		case <-end:
			left = time.After(300 * time.Millisecond)
		case <-left:
			return
		}
	}
}

const roleConfig = `
[mesh]
name = "e2e"
anchor_app = "e2e-cache"
report_every = "1s"
discover = ["api"]
pin_grace = "1s"
drain_timeout = "3s"
[service.cache]
app = "e2e-cache"
kind = "app"
vote = true
pinned = true
baseline = 3
max = 3
` + rules

// roles is a mesh of one service whose app has two roles.
type roles struct {
	*mesh
	dir    string
	faults int
}

func newRoles(t *testing.T) *roles {
	t.Helper()
	r := &roles{dir: t.TempDir()}
	r.mesh = startWith(t, roleConfig, emulator.Options{Exec: func(_ string, argv []string) []string {
		app := argv[5] + " role-app " + r.dir // argv: agent run --config FILE -- APP ...
		return append(argv[:4:4], "--kill-timeout", "5s", "--primary", app, "--replica", app)
	}})
	return r
}

// runs is how many primaries have begun.
func (r *roles) runs() int { return worked(r.t, filepath.Join(r.dir, "primary")) }

// works waits until status shows one primary, on that machine if one is named,
// and replicas on all others, each of them ready; and until they sign.
func (r *roles) works(on string, limit time.Duration) (primary emulator.Machine) {
	r.t.Helper()
	began, missing := time.Now(), ""
	r.until("one primary and two replicas are ready", limit, func() bool {
		defer func(was string) {
			if missing != was && testing.Verbose() {
				r.t.Logf("%4.1fs: %s", time.Since(began).Seconds(), missing)
			}
		}(missing)
		all, errs := ask(r.t.Context(), r.running(), 3*time.Second, status)
		var s api.Status
		for i := range all {
			if errs[i] == nil && all[i].Leader != nil {
				s = all[i]
			}
		}
		n, seen := map[string]int{}, ""
		for _, x := range s.Machines {
			seen += fmt.Sprintf(" %s %s pinned=%v ready=%v", x.ID, x.AppRole, x.Pinned, x.Ready != nil && *x.Ready)
			if x.Ready == nil || !*x.Ready || x.Pinned != (x.AppRole == "primary") {
				n["bad"]++
			}
			n[x.AppRole]++
			if x.AppRole == "primary" {
				primary = emulator.Machine{}
				primary.ID = x.ID
			}
		}
		missing = "roles:" + seen
		return n["bad"] == 0 && n["primary"] == 1 && n["replica"] == 2 && (on == "" || primary.ID == on)
	})
	return r.byID(primary.ID)
}

// newRun waits until another primary has begun, and checks what was seen so far.
func (r *roles) newRun(runs int, on string, limit time.Duration) emulator.Machine {
	r.t.Helper()
	r.until("another primary has begun", limit, func() bool { return r.runs() > runs })
	x := r.works(on, limit)
	r.check()
	return x
}

// check holds what was signed against the promise: one primary at a time in
// the mesh, and one program at a time on a machine, leftovers included.
func (r *roles) check() {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "*"))
	if err != nil || len(files) < 2 {
		r.t.Fatalf("nothing was signed: %q, %v", files, err)
	}
	for _, f := range files {
		for _, wrong := range broken(oracle(r.t, f)) {
			r.t.Errorf("%s: %s", filepath.Base(f), wrong)
		}
	}
}

// program finds the runner of a machine and the program that it runs.
func (r *roles) program(x emulator.Machine) (runner, app int) {
	r.t.Helper()
	r.until("the app of "+x.ID, 5*time.Second, func() bool {
		runner, app = 0, 0
		for _, pid := range children(r.procs(x).supervisor)[1:] {
			args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			switch f := strings.Split(string(args), "\x00"); {
			case len(f) > 1 && f[1] == "roles":
				runner = pid
			case len(f) > 1 && f[1] == "role-app" && app == 0:
				app = pid
			}
		}
		return runner > 0 && app > 0
	})
	return runner, app
}

func (r *roles) pin(x emulator.Machine) {
	r.t.Helper()
	// A leader that was elected a moment ago does not know the machines yet.
	r.until("the pin is moved", 20*time.Second, func() bool {
		_, code := r.agentctl(x, "pin", "cache", x.ID)
		return code == 0
	})
}

// other returns a machine that is not the primary, and not the leader either
// if there is one.
func (r *roles) other(primary emulator.Machine) (x emulator.Machine) {
	lead := r.settle(30 * time.Second).Leader.Machine
	for _, y := range r.others(primary) {
		if x.ID == "" || y.ID != lead {
			x = y
		}
	}
	return x
}

// TestRoles: one machine runs the primary and the others the replica, through
// moves of the pin and the deaths of the program, the mesh half and the runner.
func TestRoles(t *testing.T) {
	r := newRoles(t)
	primary := r.works("", 60*time.Second)
	for _, f := range []struct {
		name string
		long bool
		do   func(runs int)
	}{
		{"the pin moves", false, func(runs int) {
			next := r.others(primary)[0]
			r.pin(next)
			primary = r.newRun(runs, next.ID, 20*time.Second)
		}},
		{"kill -9 of the primary", false, func(runs int) {
			_, app := r.program(primary)
			r.signal(app, syscall.SIGKILL) // the app has ended: its machine starts again
			primary = r.newRun(runs, "", 60*time.Second)
		}},
		{"kill -9 of the holder's mesh half", true, func(runs int) {
			old := r.procs(primary).mesh
			r.kill(primary)
			r.until("the mesh half is another", 5*time.Second, func() bool { p := r.procs(primary).mesh; return p != 0 && p != old })
			r.settle(30 * time.Second)
			r.works(primary.ID, 20*time.Second)
			if now := r.runs(); now != runs {
				r.t.Errorf("%d more primaries began: the app has noticed", now-runs)
			}
			r.check()
		}},
		{"kill -9 of the runner", true, func(runs int) {
			runner, _ := r.program(primary)
			r.signal(runner, syscall.SIGKILL)
			primary = r.newRun(runs, "", 60*time.Second)
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			if f.long {
				long(t)
			}
			r.t = t
			began := time.Now()
			r.faults++
			f.do(r.runs())
			t.Logf("%.1f s, %d primaries so far", time.Since(began).Seconds(), r.runs())
		})
	}
	r.t = t
	all := oracle(t, filepath.Join(r.dir, "primary"))
	table.add(row{scenario: "roles", to: r.record().Epoch, note: fmt.Sprintf("%d faults, %d primaries, %d breaches", r.faults, len(all), len(broken(all)))})
}
