package flytest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader/flyapi/flytest"
)

// The test binary is also what runs on process machines: FLYTEST_ROLE says as what.
func TestMain(m *testing.M) {
	if role := os.Getenv("FLYTEST_ROLE"); role != "" {
		os.Exit(play(role))
	}
	os.Exit(m.Run())
}

func play(role string) int {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	switch role {
	case "serve":
		ip := os.Getenv("FLY_PRIVATE_IP")
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, os.Getenv("FLY_MACHINE_ID")) })
		mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) { time.Sleep(300 * time.Millisecond) })
		mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
			if _, err := os.Stat(filepath.Join(os.Getenv("HOME"), "sick")); err == nil {
				w.WriteHeader(503)
			}
		})
		go http.ListenAndServe(ip+":9470", mux)
		go http.ListenAndServe(ip+":8080", mux)
		os.WriteFile(filepath.Join(os.Getenv("HOME"), "mark"), nil, 0o600)
		<-interrupted
		return 0
	case "spin":
		for range 2 {
			go func() {
				for n := 0; n >= 0; n = (n + 1) % 1000 {
				}
			}()
		}
		<-interrupted
		return 0
	case "parent":
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "FLYTEST_ROLE=serve")
		if child.Start() != nil {
			return 1
		}
		<-interrupted
		return 0
	case "stubborn":
		os.WriteFile(filepath.Join(os.Getenv("HOME"), "mark"), nil, 0o600)
		for range time.Tick(time.Hour) {
		}
	case "fail":
		return 3
	}
	return 64
}

type processes struct {
	*flytest.Server
	t *testing.T
	l *flytest.Processes
}

func newProcesses(t *testing.T, po flytest.ProcessOptions, o flytest.Options) *processes {
	t.Helper()
	l, err := flytest.NewProcesses(po)
	must(t, "make launcher", err)
	o.Launcher = l
	s, _ := newServer(t, o)
	return &processes{s, t, l}
}

func (p *processes) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	p.t.Cleanup(cancel)
	return ctx
}

// run seeds a machine that plays a role and waits until it has started.
func (p *processes) run(role string, change func(*fly.MachineConfig)) string {
	p.t.Helper()
	exe, err := os.Executable()
	must(p.t, "find test binary", err)
	c := config()
	c.Init.Exec = []string{exe}
	c.Env = map[string]string{"FLYTEST_ROLE": role}
	if change != nil {
		change(c)
	}
	m, err := p.Seed(flytest.Spec{App: "web", Config: *c, Start: true})
	must(p.t, "seed", err)
	if role != "fail" {
		must(p.t, "start", p.Await(p.ctx(), m.ID, "started"))
	}
	return m.ID
}

func (p *processes) info(id string) flytest.MachineInfo {
	p.t.Helper()
	for _, m := range p.Machines() {
		if m.ID == id {
			return m
		}
	}
	p.t.Fatalf("machine %s is not listed", id)
	return flytest.MachineInfo{}
}

func (p *processes) eventually(what string, ok func() bool) {
	p.t.Helper()
	if poll(p.ctx(), ok) != nil {
		p.t.Fatalf("never: %s", what)
	}
}

// answers reports whether the machine's app port answers 200.
func (p *processes) answers(id string) bool {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + p.info(id).PrivateIP + ":8080/")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == 200
}

// living returns the processes that carry a machine's ID.
func living(t *testing.T, id string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, "list processes", err)
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains("\x00"+string(b), "\x00FLY_MACHINE_ID="+id+"\x00") {
			out = append(out, f)
		}
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestProcessMachineLives(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{}, flytest.Options{NoLimits: true, Secrets: map[string]map[string]string{"web": {"TOKEN": "s3cret"}}})
	id := p.run("serve", nil)
	p.eventually("the app answers", func() bool { return p.answers(id) })
	i := p.info(id)
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", i.PID))
	must(t, "read environment", err)
	for _, want := range []string{
		"FLY_APP_NAME=web", "FLY_MACHINE_ID=" + id, "FLY_ALLOC_ID=" + id, "FLY_REGION=fra", "FLY_PRIVATE_IP=" + i.PrivateIP,
		"FLY_MACHINE_VERSION=" + i.InstanceID, "FLY_PROCESS_GROUP=app", "FLY_IMAGE_REF=registry.fly.io/web:v1", "FLY_VM_MEMORY_MB=256",
		"FLY_FLAPS_BASE_URL=" + p.URL(), "FLYMESH_SOCKET=" + i.Socket, "TOKEN=s3cret", "HOME=" + i.Rootfs + "/home",
	} {
		if !strings.Contains("\x00"+string(env), "\x00"+want+"\x00") {
			t.Errorf("environment lacks %s", want)
		}
	}
	p.eventually("a mark on the root filesystem", func() bool { return exists(i.Rootfs + "/home/mark") })

	c := newStop(t, p)
	c(id)
	must(t, "stop", p.Await(p.ctx(), id, "stopped"))
	if exists(i.Rootfs) {
		t.Error("the root filesystem outlived a stop")
	}
	if left := living(t, id); len(left) > 0 {
		t.Errorf("processes outlived a stop: %v", left)
	}
}

// newStop returns a function that stops a machine through the API.
func newStop(t *testing.T, p *processes) func(id string) {
	return func(id string) {
		t.Helper()
		resp, err := http.Post(p.URL()+"/v1/apps/web/machines/"+id+"/stop", "application/json", strings.NewReader(`{"timeout":"1s"}`))
		must(t, "stop", err)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("stop: got %s", resp.Status)
		}
	}
}

func TestRootfsIsWipedUnlessItPersists(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{}, flytest.Options{NoLimits: true})
	c := newClient(t, p.Server, nil, "")
	for persist, want := range map[fly.MachinePersistRootfs]string{"": "none", "restart": "restart", "always": "restart update kill"} {
		id := p.run("serve", func(c *fly.MachineConfig) { c.Rootfs = &fly.MachineRootfs{Persist: persist} })
		file := filepath.Join(p.info(id).Rootfs, "tmp", "kept")
		kept := []string{}
		check := func(step string) {
			t.Helper()
			must(t, step, p.Await(p.ctx(), id, "started"))
			if exists(file) {
				kept = append(kept, step)
			}
			must(t, "write", os.WriteFile(file, nil, 0o600))
		}
		check("boot")
		must(t, "restart", c.Restart(p.ctx(), "web", fly.RestartMachineInput{ID: id}, ""))
		check("restart")
		m, err := c.Get(p.ctx(), "web", id)
		must(t, "get", err)
		_, err = c.Update(p.ctx(), "web", fly.LaunchMachineInput{ID: id, Config: m.Config}, "")
		must(t, "update", err)
		check("update")
		must(t, "kill", p.Kill(id))
		must(t, "kill", p.Await(p.ctx(), id, "stopped"))
		p.eventually("it starts again", func() bool { _, err := c.Start(p.ctx(), "web", id, ""); return err == nil })
		check("kill")
		if got := strings.Join(kept, " "); got != want && (want != "none" || got != "") {
			t.Errorf("persist %q: the file outlived %q, want %q", persist, got, want)
		}
	}
}

func TestStubbornProcessIsKilled(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{}, flytest.Options{})
	id := p.run("stubborn", nil)
	p.eventually("it ignores signals", func() bool { return exists(p.info(id).Rootfs + "/home/mark") })
	began := time.Now()
	newStop(t, p)(id)
	must(t, "stop", p.Await(p.ctx(), id, "stopped"))
	if d := time.Since(began); d < time.Second {
		t.Errorf("killed after %v, before its timeout of 1s", d)
	}
}

func TestAppOutlivesItsAgent(t *testing.T) {
	t.Parallel()
	for _, cgroups := range []bool{true, false} {
		p := newProcesses(t, flytest.ProcessOptions{NoCgroups: !cgroups}, flytest.Options{})
		id := p.run("parent", nil)
		p.eventually("the app answers", func() bool { return p.answers(id) })
		main := p.info(id).PID
		must(t, "kill the main process", syscall.Kill(main, syscall.SIGKILL))
		p.eventually("the main process ends", func() bool { return syscall.Kill(main, 0) != nil })
		if !p.answers(id) || p.info(id).State != "started" {
			t.Errorf("after the agent died: state %s, app answers %v", p.info(id).State, p.answers(id))
		}
		must(t, "kill the machine", p.Kill(id))
		must(t, "kill the machine", p.Await(p.ctx(), id, "stopped"))
		if left := living(t, id); len(left) > 0 {
			t.Errorf("processes outlived a kill: %v", left)
		}
	}
}

func TestFreezeAndThaw(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{}, flytest.Options{})
	id := p.run("parent", nil)
	p.eventually("the app answers", func() bool { return p.answers(id) })
	must(t, "freeze", p.Freeze(id))
	if p.answers(id) {
		t.Error("a frozen app answers")
	}
	if got := p.info(id).State; got != "started" {
		t.Errorf("a frozen machine is %s, want started", got)
	}
	must(t, "thaw", p.Thaw(id))
	p.eventually("the app answers again", func() bool { return p.answers(id) })
}

func TestRestartPolicy(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{}, flytest.Options{Timing: flytest.Timing{Restart: 20 * time.Millisecond}, NoLimits: true})
	id := p.run("fail", func(c *fly.MachineConfig) {
		c.Restart = &fly.MachineRestart{Policy: fly.MachineRestartPolicyOnFailure, MaxRetries: 2}
	})
	c := newClient(t, p.Server, nil, "")
	exits := func() (n int, last *fly.MachineEvent) {
		m, err := c.Get(p.ctx(), "web", id)
		must(t, "get", err)
		for _, e := range m.Events {
			if e.Type == "exit" {
				n++
			}
		}
		return n, m.GetLatestEventOfType("exit")
	}
	p.eventually("three exits", func() bool { n, _ := exits(); return n == 3 })
	if _, e := exits(); e.Request.ExitEvent.ExitCode != 3 || e.Request.ExitEvent.Restarting || e.Request.RestartCount != 2 {
		t.Errorf("last exit: got %+v, restart count %d", e.Request.ExitEvent, e.Request.RestartCount)
	}
}

func TestQuotaLimits(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{Allowance: func(flytest.Boot) float64 { return 0.2 }}, flytest.Options{NoLimits: true})
	id := p.run("spin", nil)
	if p.Accounting() == "process-tree" {
		p.eventually("the allowance in the environment", func() bool {
			env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.info(id).PID))
			return strings.Contains(string(env), "\x00FLYMESH_CPU_ALLOWANCE=0.2\x00")
		})
		t.Skip("no cgroups here: nothing is limited")
	}
	c := newClient(t, p.Server, nil, "")
	ticks := func() (n uint64) {
		ps, err := c.GetProcesses(p.ctx(), "web", id)
		must(t, "ps", err)
		for _, s := range ps {
			n += s.Cpu
		}
		return n
	}
	before, began := ticks(), time.Now()
	time.Sleep(2 * time.Second) // the span of a measurement, not a wait for something
	used := float64(ticks()-before) / 100 / time.Since(began).Seconds()
	if used < 0.08 || used > 0.32 {
		t.Errorf("a busy loop with 0.2 cores used %.2f", used)
	}
	t.Logf("used %.3f of 0.2 cores, accounting %s", used, p.Accounting())
}

func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	for _, cgroups := range []bool{true, false} {
		l, err := flytest.NewProcesses(flytest.ProcessOptions{NoCgroups: !cgroups})
		must(t, "make launcher", err)
		s, err := flytest.New(flytest.Options{Launcher: l})
		must(t, "make server", err)
		must(t, "listen", s.Listen("127.0.0.1:0"))
		p := &processes{s, t, l}
		ids := []string{p.run("parent", nil), p.run("stubborn", nil), p.run("spin", nil)}
		frozen := p.run("serve", nil)
		must(t, "freeze", p.Freeze(frozen))
		group := filepath.Dir(p.info(frozen).Cgroup)
		if cgroups && l.Accounting() != "process-tree" && !exists(group) {
			t.Errorf("cgroup %s does not exist", group)
		}
		bystander := exec.Command("sleep", "60")
		must(t, "start bystander", bystander.Start())
		must(t, "close", s.Close())
		for _, id := range append(ids, frozen) {
			if left := living(t, id); len(left) > 0 {
				t.Errorf("processes outlived the emulator: %v", left)
			}
		}
		if exists(l.Dir()) || (group != "." && exists(group)) {
			t.Errorf("left behind: %s (%v), %s (%v)", l.Dir(), exists(l.Dir()), group, exists(group))
		}
		if err := syscall.Kill(bystander.Process.Pid, 0); err != nil {
			t.Errorf("bystander: %v", err)
		}
		must(t, "kill bystander", bystander.Process.Kill())
		bystander.Wait()
	}
}

func TestRouteSpreadsOverHealthyMachines(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{}, flytest.Options{Proxy: flytest.Checks{Every: 20 * time.Millisecond}, NoLimits: true})
	r, err := p.Route("web", "127.0.0.1:0", 8080)
	must(t, "route", err)
	ask := func() (machine string, status int) {
		resp, err := http.Get(r.URL() + "/")
		must(t, "ask", err)
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == 503 && string(b) != `{"error":"no healthy machine"}` {
			t.Errorf("503 says %s", b)
		}
		return resp.Header.Get("Fly-Machine-Id"), resp.StatusCode
	}
	if _, code := ask(); code != 503 {
		t.Errorf("without machines: got %d, want 503", code)
	}
	a, b := p.run("serve", nil), p.run("serve", nil)
	seen := func(n int) map[string]int {
		m := map[string]int{}
		for range n {
			id, code := ask()
			m[id+" "+strconv.Itoa(code)]++
		}
		return m
	}
	p.eventually("both machines answer", func() bool { m := seen(4); return m[a+" 200"] == 2 && m[b+" 200"] == 2 })
	p.eventually("the check is in the API", func() bool {
		m, err := newClient(t, p.Server, nil, "").Get(p.ctx(), "web", a)
		must(t, "get", err)
		return len(m.Checks) == 1 && m.Checks[0].Status == fly.Passing && m.Checks[0].Name == "servicecheck-00-http-8080"
	})
	must(t, "make sick", os.WriteFile(p.info(a).Rootfs+"/home/sick", nil, 0o600))
	p.eventually("only the healthy one answers", func() bool { return seen(4)[b+" 200"] == 4 })
	must(t, "cordon", newClient(t, p.Server, nil, "").Cordon(p.ctx(), "web", b, ""))
	if m := seen(3); m[" 503"] != 3 {
		t.Errorf("with one sick and one cordoned: got %v, want 503", m)
	}
	total := 0
	for _, m := range r.Info().Machines {
		total += m.Requests
	}
	if info := r.Info(); total < 8 || info.Refused < 4 {
		t.Errorf("counts: got %+v", info)
	}
}

func TestAllowanceIsTold(t *testing.T) {
	t.Parallel()
	for _, cgroups := range []bool{true, false} {
		p := newProcesses(t, flytest.ProcessOptions{NoCgroups: !cgroups}, flytest.Options{})
		id := p.run("serve", func(c *fly.MachineConfig) { c.Metadata["flymesh_cpu_allowance"] = "0.5" })
		i := p.info(id)
		tree := p.Accounting() == "process-tree"
		if !cgroups && !tree {
			t.Errorf("without cgroups: accounting is %s", p.Accounting())
		}
		p.eventually("the main process is there", func() bool { return len(living(t, id)) > 0 })
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", i.PID))
		must(t, "read environment", err)
		if told := strings.Contains(string(env), "\x00FLYMESH_CPU_ALLOWANCE=0.5\x00"); told != tree {
			t.Errorf("accounting %s: allowance in the environment is %v", p.Accounting(), told)
		}
		if i.Allowance != 0.5 || (i.Cgroup == "") != tree {
			t.Errorf("accounting %s: machine has allowance %v, cgroup %q", p.Accounting(), i.Allowance, i.Cgroup)
		}
	}
}
