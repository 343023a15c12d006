package bench

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func printFigures(w io.Writer, fs []Figure) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	part := ""
	for _, f := range fs {
		if f.Part != part {
			part = f.Part
			fmt.Fprintf(t, "\n%s\n", strings.ToUpper(part))
			fmt.Fprintln(t, "WHAT\tIS\tGOAL\tHELD\tBESIDE")
		}
		held := ""
		if f.Held != nil {
			held = map[bool]string{true: "yes", false: "NO"}[*f.Held]
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", f.What, f.Value, f.Goal, held, f.Floor)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print figures: %w", err)
	}
	return nil
}

// sheet collects the figures of one part.
type sheet struct {
	part string
	list []Figure
}

// add notes a value that has no goal.
func (s *sheet) add(what, value, beside string) {
	s.list = append(s.list, Figure{Part: s.part, What: what, Value: value, Floor: beside})
}

// below notes a value that should be less than a goal of the same unit.
func (s *sheet) below(what string, value, goal float64, unit func(float64) string, beside string) {
	f := Figure{Part: s.part, What: what, Value: unit(value), Goal: "< " + unit(goal), Floor: beside}
	if math.IsNaN(value) {
		f.Value = "not measured"
	} else {
		held := value < goal
		f.Held = &held
	}
	s.list = append(s.list, f)
}

func mib(x float64) string     { return fmt.Sprintf("%.1f MiB", x/(1<<20)) }
func percent(x float64) string { return fmt.Sprintf("%.2f %%", 100*x) }
func rate(x float64) string    { return fmt.Sprintf("%.0f B/s", x) }
func count(x float64) string   { return fmt.Sprintf("%.0f", x) }
func seconds(x float64) string { return fmt.Sprintf("%.2f s", x) }
func millis(x float64) string  { return fmt.Sprintf("%.2f ms", 1000*x) }

// times are durations of one kind.
type times []time.Duration

// at returns the q-quantile in seconds, by nearest rank: with fewer than 100
// values the 0.99 one is the greatest.
func (t times) at(q float64) float64 {
	if len(t) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(t))
	return s[min(len(s)-1, max(0, int(math.Ceil(q*float64(len(s))))-1))].Seconds()
}

// spread tells a distribution in one line.
func (t times) spread(unit func(float64) string) string {
	if len(t) == 0 {
		return "not measured"
	}
	return fmt.Sprintf("p50 %s, p99 %s (%d; %s to %s)", unit(t.at(0.5)), unit(t.at(0.99)), len(t), unit(t.at(0)), unit(t.at(1)))
}

// agentBinary finds the agent.
func agentBinary(path string) (string, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find agent binary: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), "agent")
	}
	path, err := filepath.Abs(path)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("find agent binary (--agent): %w", err)
	}
	return path, nil
}

// machineName says what this computer is.
func machineName() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown system"
	}
	return "Linux " + strings.TrimSpace(string(b))
}

// loadNow says how busy this computer is by itself.
func loadNow() string {
	b, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) > 0 {
		return "load average " + f[0]
	}
	return "load average unknown"
}
