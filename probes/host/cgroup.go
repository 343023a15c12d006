package host

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// groups reads the CPU quotas and memory limits of the cgroups this process is
// in: v2 (cpu.max, cpu.stat, memory.max), v1 (cpu.cfs_quota_us, cpuacct.usage,
// memory.limit_in_bytes) or both at once. All ancestors that are visible count,
// the tightest decides.
type groups struct {
	proc  string
	last  map[string]sample // by directory
	trees map[string]*tree  // by directory of a v1 quota without a twin in cpuacct
}

// sample is the state of one quota.
type sample struct {
	used      float64 // CPU seconds, cumulative
	throttled float64 // periods, cumulative
}

func newGroups(proc string) *groups {
	return &groups{proc: proc, trees: map[string]*tree{}}
}

// pressure returns the greatest pressure of all quotas over the last wall
// seconds: used over allowed, or the share of all periods that were throttled.
// Periods in which nothing ran count, so that a rare burst is not a full load.
// ok is false where there is no quota.
func (g *groups) pressure(wall float64) (pressure float64, ok bool, err error) {
	last := g.last
	g.last = map[string]sample{}
	for _, d := range g.dirs("cpu") {
		quota, period, limited := d.quota()
		if !limited {
			continue
		}
		ok = true
		before, seen := last[d.path]
		s, sampleErr := g.sample(d, before)
		if sampleErr != nil {
			err = fmt.Errorf("read cpu quota: %w", sampleErr)
			continue
		}
		g.last[d.path] = s
		if !seen {
			err = errFirst
			continue
		}
		pressure = max(pressure,
			(s.used-before.used)/wall/(quota/period),
			min((s.throttled-before.throttled)/(wall/period), 1))
	}
	return pressure, ok, err
}

// memory returns used over limit of the fullest cgroup that has a limit below
// the machine's total bytes. File pages that the kernel can drop are not used
// memory.
func (g *groups) memory(total float64) (ratio float64, ok bool) {
	for _, d := range g.dirs("memory") {
		limit, current, reclaimable := "memory.max", "memory.current", "inactive_file"
		if !d.v2 {
			limit, current, reclaimable = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
		}
		bound, err1 := number(d.path, limit) // "no limit" is over any total in v1 and no number in v2
		used, err2 := number(d.path, current)
		if err1 != nil || err2 != nil || bound <= 0 || bound >= total {
			continue
		}
		stat := keyed(d.path, "memory.stat")
		ratio, ok = max(ratio, (used-min(used, stat[reclaimable]))/bound), true
	}
	return ratio, ok
}

// dir is one cgroup directory.
type dir struct {
	path string
	v2   bool
	// acct is the directory of the same cgroup in the v1 hierarchy of cpuacct,
	// or "" where this process is elsewhere there.
	acct string
}

// quota returns the cpu quota and its period in seconds.
func (d dir) quota() (quota, period float64, ok bool) {
	if d.v2 {
		b, err := os.ReadFile(filepath.Join(d.path, "cpu.max"))
		f := strings.Fields(string(b))
		if err != nil || len(f) != 2 {
			return 0, 0, false
		}
		quota, err1 := strconv.ParseFloat(f[0], 64) // "max" is no number
		period, err2 := strconv.ParseFloat(f[1], 64)
		return quota / 1e6, period / 1e6, err1 == nil && err2 == nil && quota > 0 && period > 0
	}
	quota, err1 := number(d.path, "cpu.cfs_quota_us") // -1: none
	period, err2 := number(d.path, "cpu.cfs_period_us")
	return quota / 1e6, period / 1e6, err1 == nil && err2 == nil && quota > 0 && period > 0
}

// sample reads the counters of a quota. before is the last sample, to which
// the time of processes is added where the kernel keeps no sum.
func (g *groups) sample(d dir, before sample) (sample, error) {
	stat := keyed(d.path, "cpu.stat")
	s := sample{throttled: stat["nr_throttled"]}
	if d.v2 {
		usage, ok := stat["usage_usec"]
		if !ok {
			return s, errors.New("cpu.stat has no usage_usec")
		}
		s.used = usage / 1e6
		return s, nil
	}
	if d.acct != "" {
		usage, err := number(d.acct, "cpuacct.usage")
		s.used = usage / 1e9
		return s, err
	}
	t := g.trees[d.path]
	if t == nil {
		t = newTree(g.proc)
		g.trees[d.path] = t
	}
	used, err := t.used(t.members(d.path))
	if errors.Is(err, errFirst) {
		err = nil // the caller has no sample of this quota either
	}
	s.used = before.used + used
	return s, err
}

// dirs lists the cgroup directories of this process for a controller, the own
// one first, up to the root of the mount.
func (g *groups) dirs(controller string) []dir {
	own := g.memberships()
	var all []dir
	for _, m := range g.mounts() {
		path, ok := own[""], m.v2
		if !m.v2 && slices.Contains(m.controllers, controller) {
			path, ok = own[controller], true
		}
		if !ok || path == "" {
			continue
		}
		top, rel := m.at, m.relative(path)
		acct := ""
		for _, a := range g.mounts() {
			if !a.v2 && !m.v2 && slices.Contains(a.controllers, "cpuacct") && own["cpuacct"] == path {
				acct = a.at
			}
		}
		for ; ; rel = filepath.Dir(rel) {
			d := dir{path: filepath.Join(top, rel), v2: m.v2}
			if acct != "" {
				d.acct = filepath.Join(acct, rel)
			}
			all = append(all, d)
			if rel == "/" {
				break
			}
		}
	}
	return all
}

// memberships returns the cgroup path of this process per v1 controller, and
// under "" that of v2 (cgroups(7), /proc/PID/cgroup).
func (g *groups) memberships() map[string]string {
	b, _ := os.ReadFile(filepath.Join(g.proc, "self/cgroup")) // none: no cgroups
	own := map[string]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			own[c] = f[2]
		}
	}
	return own
}

// mount is one cgroup file system.
type mount struct {
	at          string // mount point
	root        string // the cgroup that is at the mount point
	v2          bool
	controllers []string // v1
}

// relative returns a cgroup path as seen below the mount point.
func (m mount) relative(path string) string {
	if rel, ok := strings.CutPrefix(path, strings.TrimSuffix(m.root, "/")); ok && (rel == "" || rel[0] == '/') {
		path = rel
	}
	return filepath.Join("/", path)
}

// mounts lists the cgroup mounts of this process (proc(5), mountinfo).
func (g *groups) mounts() []mount {
	b, _ := os.ReadFile(filepath.Join(g.proc, "self/mountinfo"))
	var all []mount
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f, t := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(t) < 3 || !strings.HasPrefix(t[0], "cgroup") {
			continue
		}
		all = append(all, mount{at: f[4], root: f[3], v2: t[0] == "cgroup2", controllers: strings.Split(t[2], ",")})
	}
	return all
}

// number reads a file that holds one number; "max" is an error.
func number(dir, name string) (float64, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	x, err := strconv.ParseFloat(string(bytes.TrimSpace(b)), 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return x, nil
}

// keyed reads a file of lines "key number"; an unreadable file is empty.
func keyed(dir, name string) map[string]float64 {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	all := map[string]float64{}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), " ")
		if x, err := strconv.ParseFloat(value, 64); err == nil {
			all[key] = x
		}
	}
	return all
}
