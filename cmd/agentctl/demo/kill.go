package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
)

// Killing is what happened when the leader's agent was killed.
type Killing struct {
	Machine       string  `json:"machine"`
	Service       string  `json:"service"`
	PID           int     `json:"pid"`
	Successor     string  `json:"successor"`
	TermBefore    uint64  `json:"term_before"`
	TermAfter     uint64  `json:"term_after"`
	WithoutLeader float64 `json:"seconds_without_leader"`
	AppRequests   int     `json:"app_requests"` // sent to the machine's app meanwhile, straight to it
	AppFailed     int     `json:"app_failed"`
	Cooldowns     int     `json:"cooldowns"`      // that ran when the leader was killed
	CooldownsKept int     `json:"cooldowns_kept"` // of these, under the next leader, to the same moment
	Back          bool    `json:"agent_back"`     // the killed agent was started again and reports
}

// killLeader kills the mesh half of the leader's agent with SIGKILL, watches
// the app beside it and measures how long the mesh is without a leader.
func (s *story) killLeader(ctx context.Context) (Killing, error) {
	var before api.Status
	err := until(ctx, "a cooldown to run", 5*time.Second, func(ctx context.Context) (bool, string) {
		st, err := s.mesh.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		before = st
		return slices.ContainsFunc(st.Services, cooledLong), "no service is at the beginning of its cooldown"
	})
	if before.Leader == nil {
		return Killing{}, fmt.Errorf("find leader: %w", err)
	}
	m, ok := s.em.Machine(before.Leader.Machine)
	if !ok {
		return Killing{}, fmt.Errorf("find leader: machine %s is not in the emulator", before.Leader.Machine)
	}
	pid, err := meshHalf(s.o.Agent, m.ID)
	if err != nil {
		return Killing{}, fmt.Errorf("kill leader: %w", err)
	}
	k := Killing{Machine: m.ID, Service: m.Service, PID: pid, TermBefore: before.Term}

	watch, stop := context.WithCancel(ctx)
	defer stop()
	var app sync.WaitGroup
	app.Go(func() { k.AppRequests, k.AppFailed = watchApp(watch, m) })

	killed := time.Now()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return k, fmt.Errorf("kill leader: %w", err)
	}
	s.out.say("mesh: kill -9 %d: the agent of %s, the leader; its app goes on", pid, s.follow.name(m.ID))

	var after api.Status
	err = until(ctx, "another leader", 20*time.Second, func(ctx context.Context) (bool, string) {
		st, err := s.mesh.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		after = st
		return st.Term > before.Term || st.Epoch > before.Epoch, fmt.Sprintf("%s still leads term %d", st.Leader.Machine, st.Term)
	})
	if err != nil {
		return k, err
	}
	k.Successor, k.TermAfter = after.Leader.Machine, after.Term
	// The next leader stamps its election; our poll adds what it takes to hear of it.
	k.WithoutLeader = time.Since(killed).Seconds()
	for _, e := range s.follow.all() {
		if e.Kind == "leader" && e.Machine == k.Successor && e.At.After(killed) {
			k.WithoutLeader = min(k.WithoutLeader, e.At.Sub(killed).Seconds())
		}
	}
	for _, was := range before.Services {
		if !cooling(was) {
			continue
		}
		k.Cooldowns++
		if is := service(after, was.Name).CooldownUntil; is != nil && is.Equal(*was.CooldownUntil) {
			k.CooldownsKept++
		}
	}
	s.out.say("mesh: %.1fs without a leader; cooldowns that ran: %d, kept to the same moment: %d", k.WithoutLeader, k.Cooldowns, k.CooldownsKept)

	err = until(ctx, "the killed agent to come back", 15*time.Second, func(ctx context.Context) (bool, string) {
		st, err := s.mesh.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		for _, x := range st.Machines {
			if x.ID == m.ID && x.ReportAgeMS != nil && time.Duration(*x.ReportAgeMS)*time.Millisecond < 3*fastPace.ReportEvery {
				return true, ""
			}
		}
		return false, "the leader does not hear it"
	})
	k.Back = err == nil
	stop()
	app.Wait()
	s.out.say("mesh: the app of %s answered %d of %d requests meanwhile", s.follow.name(m.ID), k.AppRequests-k.AppFailed, k.AppRequests)
	return k, err
}

// failoverMost is how long an election may take and still leave some of a
// cooldown to see.
const failoverMost = 5 * time.Second

// cooledLong says whether the cooldown of a service will outlast an election.
func cooledLong(s api.ServiceStatus) bool {
	return s.CooldownUntil != nil && time.Until(*s.CooldownUntil) > failoverMost
}

// cooling says whether the cooldown of a service runs for a while longer.
func cooling(s api.ServiceStatus) bool {
	return s.CooldownUntil != nil && time.Until(*s.CooldownUntil) > time.Second/2
}

// meshHalf finds the process of a machine's agent that does the mesh's work:
// the one whose parent, the supervisor of the app, is the same program.
func meshHalf(agent, machine string) (int, error) {
	agent, err := filepath.EvalSymlinks(agent)
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	parents := map[int]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || exe != agent {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00FLY_MACHINE_ID="+machine+"\x00")) {
			continue
		}
		if p, err := parent(pid); err == nil {
			parents[pid] = p
		}
	}
	for pid, p := range parents {
		if _, ok := parents[p]; ok {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("machine %s: no mesh half among %d agent processes", machine, len(parents))
}

// parent reads a process's parent from proc(5).
func parent(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name is in parentheses and may hold spaces and parentheses.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 2 {
		return 0, fmt.Errorf("read stat of process %d: too short", pid)
	}
	return strconv.Atoi(f[1])
}

// watchApp asks a machine's app ten times a second whether it serves, straight
// at its address, until ctx ends.
func watchApp(ctx context.Context, m emulator.Machine) (asked, failed int) {
	for {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := serves(one, m)
		cancel()
		if ctx.Err() != nil {
			return asked, failed
		}
		asked++
		if err != nil {
			failed++
		}
		select {
		case <-ctx.Done():
			return asked, failed
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func serves(ctx context.Context, m emulator.Machine) error {
	if m.Kind == "redis" {
		return pong(ctx, m.Addr)
	}
	path := map[string]string{"n8n": "/healthz", "embeddings": "/health"}[m.Kind]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.Addr+path, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return err
}

func pong(ctx context.Context, addr string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t)
	}
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "+PONG") {
		err = errors.New(strings.TrimSpace(line))
	}
	return err
}
