package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what a process has used since it began, read from /proc.
type usage struct {
	at       time.Time
	cpu      time.Duration // on a core, by the scheduler's own clock
	switches uint64        // voluntary and not
}

// memory is what a process holds now, in bytes.
type memory struct {
	rss, pss, private, own float64 // own: pages that are no part of a file
}

// usageOf adds up the threads of a process. A thread that has ended takes its
// share along; those of a Go process live on.
func usageOf(pid int) (usage, error) {
	u := usage{at: time.Now()}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return u, fmt.Errorf("read usage of process %d: it is gone", pid)
	}
	for _, t := range tasks {
		b, err := os.ReadFile(filepath.Join(t, "schedstat"))
		if err != nil {
			continue // it has ended just now
		}
		ns, err := strconv.ParseInt(string(bytes.Fields(b)[0]), 10, 64)
		if err != nil {
			return u, fmt.Errorf("read usage of process %d: %w", pid, err)
		}
		u.cpu += time.Duration(ns)
		f := fieldsOf(filepath.Join(t, "status"))
		u.switches += uint64(f["voluntary_ctxt_switches"] + f["nonvoluntary_ctxt_switches"])
	}
	return u, nil
}

// memoryOf reads what a process holds.
func memoryOf(pid int) (memory, error) {
	f := fieldsOf(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if f["Rss"] == 0 {
		return memory{}, fmt.Errorf("read memory of process %d: it is gone", pid)
	}
	const kb = 1024
	return memory{rss: kb * f["Rss"], pss: kb * f["Pss"], private: kb * (f["Private_Clean"] + f["Private_Dirty"]), own: kb * f["Anonymous"]}, nil
}

// fieldsOf reads "Name: number" lines; those of another form are skipped.
func fieldsOf(path string) map[string]float64 {
	out := map[string]float64{}
	f, err := os.Open(path)
	if err != nil {
		return out
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		name, rest, _ := strings.Cut(sc.Text(), ":")
		if v := strings.Fields(rest); len(v) > 0 {
			if x, err := strconv.ParseFloat(v[0], 64); err == nil {
				out[name] = x
			}
		}
	}
	return out
}

// process is one line of the process table.
type process struct {
	pid, parent int
	args        []string
	began       time.Duration // after the system's boot, in steps of 10 ms
}

// processes lists what runs.
func processes() []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	var out []process
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue
		}
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(f) < 20 {
			continue
		}
		line, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil {
			continue
		}
		p := process{args: strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")}
		p.pid, _ = strconv.Atoi(filepath.Base(d))
		p.parent, _ = strconv.Atoi(string(f[1]))
		began, _ := strconv.ParseInt(string(f[19]), 10, 64)
		p.began = time.Duration(began) * 10 * time.Millisecond
		out = append(out, p)
	}
	return out
}

// meshHalves finds the mesh half below each supervisor.
func meshHalves(supervisors map[int]string) map[string]process {
	out := map[string]process{}
	for _, p := range processes() {
		if machine, ok := supervisors[p.parent]; ok && len(p.args) > 1 && p.args[1] == "mesh" {
			out[machine] = p
		}
	}
	return out
}

// sinceBoot is the clock that processes are stamped with.
func sinceBoot() time.Duration {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	s, _ := strconv.ParseFloat(string(bytes.Fields(b)[0]), 64)
	return time.Duration(s * float64(time.Second))
}
