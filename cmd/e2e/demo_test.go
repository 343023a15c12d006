package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDemoWithFailingCalls: the demo, with every tenth call of the Machines
// API failing: refused, done but said to have failed, or cut before or after.
// Its own checks are the end state that is asked for.
func TestDemoWithFailingCalls(t *testing.T) {
	long(t)
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(build(t), "agentctl"), "demo", "--json", "--agent", agentBinary(t))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	var out bytes.Buffer
	progress := &lines{}
	cmd.Stdout, cmd.Stderr = &out, progress
	at := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	url := ""
	for url == "" && ctx.Err() == nil {
		url = regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(progress.String())
		time.Sleep(50 * time.Millisecond)
	}
	faults := `[{"chance":0.026,"status":500},{"chance":0.026,"status":502,"drop":"after"},{"chance":0.026,"drop":"before"},{"chance":0.026,"drop":"after"}]`
	res, err := http.Post(url+"/_emulator/faults", "application/json", strings.NewReader(faults))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	hit := make(chan string, 1)
	go func() { hit <- counts(ctx, url) }()
	err = cmd.Wait()
	cancel()
	var sum struct {
		OK     bool `json:"ok"`
		Leader struct {
			Without float64 `json:"seconds_without_leader"`
		} `json:"leader_killed"`
	}
	if jerr := json.Unmarshal(out.Bytes(), &sum); jerr != nil || err != nil || !sum.OK {
		t.Errorf("the demo ended with %v (%v)\n%s\n%s", err, jerr, out.String(), progress.String())
	}
	table.add(row{scenario: "the demo with 10 % of all calls failing", gap: sum.Leader.Without, from: 1, to: 1, note: fmt.Sprintf("%.0f s, ok %t; %s", time.Since(at).Seconds(), sum.OK, <-hit)})
}

// counts says how many calls were hit, as of the last time that it could ask.
func counts(ctx context.Context, url string) (last string) {
	for ctx.Err() == nil {
		var faults []struct{ Hits int }
		var requests []struct{ By string }
		if read(ctx, url+"/_emulator/faults", &faults) == nil && read(ctx, url+"/_emulator/requests", &requests) == nil {
			n := 0
			for _, f := range faults {
				n += f.Hits
			}
			last = fmt.Sprintf("%d of %d calls failed", n, len(requests))
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
	return last
}

func read(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(v)
}

// lines is a buffer that is written and read at the same time.
type lines struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
