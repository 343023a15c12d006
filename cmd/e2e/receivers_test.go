package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flymesh/leader/notify"
)

// runBeside runs a real program until the test ends, and shows what it said if
// the test failed. What it says is returned as it grows.
func runBeside(t *testing.T, cmd *exec.Cmd) *bytes.Buffer {
	t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", cmd.Path, log.String())
		}
	})
	return &log
}

// alertmanager starts a real one and returns its URL.
func alertmanager(t *testing.T) string {
	t.Helper()
	program := need(t, "prometheus-alertmanager", "prometheus-alertmanager")
	dir, addr := t.TempDir(), port(t)
	file := filepath.Join(dir, "am.yml")
	if err := os.WriteFile(file, []byte("route: {receiver: none}\nreceivers: [{name: none}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config.file="+file, "--storage.path="+dir, "--web.listen-address="+addr, "--cluster.listen-address=")
	log := runBeside(t, cmd)
	url := "http://" + addr
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get(url + "/-/ready"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return url
			}
		}
		if time.Now().After(end) {
			t.Fatalf("alertmanager is not ready:\n%s", log.String())
		}
	}
}

// firing asks Alertmanager for the alerts of a name that it holds for active.
func firing(t *testing.T, am, name string) int {
	t.Helper()
	resp, err := http.Get(am + `/api/v2/alerts?active=true&filter=alertname="` + name + `"`)
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	var as []struct{ Labels map[string]string }
	if err := json.NewDecoder(resp.Body).Decode(&as); err != nil {
		return -1
	}
	return len(as)
}

// inbox is a receiver at a fixed address that answers everything with one
// status, once it listens.
type inbox struct {
	t      *testing.T
	URL    string
	status int
	line   func(body []byte) string // what of a request is kept
	key    string                   // of the signature; empty: none is asked for
	began  time.Time

	mu     sync.Mutex // guards all below
	got    []string   // requests that were taken
	log    []string   // every request, for people
	unsign int        // requests without a right signature
}

// newInbox returns one that takes everything, and listens.
func newInbox(t *testing.T, line func([]byte) string, key string) *inbox {
	b := &inbox{t: t, URL: "http://" + port(t), status: http.StatusOK, line: line, key: key, began: time.Now()}
	b.listen()
	return b
}

// listen opens the inbox until the test ends.
func (b *inbox) listen() {
	b.t.Helper()
	l, err := net.Listen("tcp", strings.TrimPrefix(b.URL, "http://"))
	if err != nil {
		b.t.Fatal(err)
	}
	s := &http.Server{Handler: b}
	go s.Serve(l)
	b.t.Cleanup(func() { s.Close() })
}

func (b *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.key != "" {
		var secs int64
		sig := r.Header.Get(notify.SignatureHeader)
		fmt.Sscanf(sig, "t=%d,", &secs)
		if sig != notify.Sign(b.key, time.Unix(secs, 0), body) {
			b.unsign++
		}
	}
	if b.status < 300 {
		b.got = append(b.got, b.line(body))
	}
	b.log = append(b.log, fmt.Sprintf("%6.1fs  %d  %s", time.Since(b.began).Seconds(), b.status, b.line(body)))
	w.WriteHeader(b.status)
}

func (b *inbox) taken() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

func (b *inbox) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func (b *inbox) unsigned() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unsign
}

// hookLine is what a webhook's message says.
func hookLine(body []byte) string {
	var m notify.Message
	_ = json.Unmarshal(body, &m)
	return m.Status + " " + m.Key
}

// managerLine is what an Alertmanager's message says.
func managerLine(body []byte) string {
	var as []struct {
		Labels map[string]string `json:"labels"`
		EndsAt time.Time         `json:"endsAt"`
	}
	if json.Unmarshal(body, &as) != nil || len(as) != 1 {
		return string(body)
	}
	what := "firing "
	if !as[0].EndsAt.After(time.Now()) {
		what = "resolved "
	}
	return what + as[0].Labels["alertname"] + "/" + as[0].Labels["service"]
}
