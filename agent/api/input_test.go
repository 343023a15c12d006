package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"flymesh/agent/api"
	"flymesh/agent/api/apitest"
)

// raw sends a request as bytes over the mesh port's handlers.
func raw(t testing.TB, c *http.Client, base, method, path, body string) (int, []byte) {
	t.Helper()
	r, err := http.NewRequest(method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	b.ReadFrom(resp.Body)
	return resp.StatusCode, b.Bytes()
}

func TestBadInput(t *testing.T) {
	mesh, ds := three(t)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: withProto(tlsOf(t, 0, "m9"), "http/1.1")}}
	defer c.CloseIdleConnections()
	base := "https://" + ds[0].mesh
	for _, x := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", api.PathScale, ``, 400, "the body is empty"},
		{"POST", api.PathScale, `[]`, 400, "must be one object"},
		{"POST", api.PathScale, `{"service":"n8n"`, 400, "not JSON"},
		{"POST", api.PathScale, `{"service":"n8n","delta":1}{}`, 400, "something follows"},
		{"POST", api.PathScale, `{"service":"n8n","delta":1,"colour":"red"}`, 400, `unknown key "colour"`},
		{"POST", api.PathScale, `{"service":"n8n","delta":"1"}`, 400, "delta: a JSON string does not fit; it must be a whole number"},
		{"POST", api.PathScale, `{"service":"n8n","delta":1.5}`, 400, "delta"},
		{"POST", api.PathScale, `{"service":7,"delta":1}`, 400, "service: a JSON number does not fit; it must be a string"},
		{"POST", api.PathScale, `{"service":"n8n"}`, 400, "delta or target is missing"},
		{"POST", api.PathScale, `{"service":"n8n","delta":1,"target":2}`, 400, "give one of them"},
		{"POST", api.PathScale, `{"service":"n8n","target":-1}`, 400, "target: -1"},
		{"POST", api.PathScale, `{"delta":1}`, 400, "service is missing"},
		{"POST", api.PathScale, `{"service":"nope","delta":1}`, 400, `service "nope" is not in mesh.toml`},
		{"POST", api.PathScale, `{"service":"n8n","delta":9}`, 400, "it must be 1 to 3"},
		{"POST", api.PathScale, `{"service":"n8n","delta":1,"reason":"` + strings.Repeat("x", 301) + `"}`, 400, "reason: it is longer"},
		{"POST", api.PathScale, `{"service":"` + strings.Repeat("x", 1<<17) + `"}`, 400, "the body is longer than 65536 bytes"},
		{"POST", api.PathPause, `{"service":"n8n"}`, 400, "for: 0"},
		{"POST", api.PathPause, `{"service":"n8n","for":-5}`, 400, "for: -5"},
		{"POST", api.PathResume, `{"service":"n8n","for":5}`, 400, "for: 5"},
		{"POST", api.PathDrain, `{"deadline":-1}`, 400, "deadline: -1"},
		{"POST", api.PathDrain, `{"deadline":99999999999999}`, 400, "deadline"},
		{"POST", api.PathAdmit, `{}`, 400, "boot: it is missing"},
		{"POST", api.PathPropose, `{"v":1,"at":"yesterday"}`, 400, "yesterday"},
		{"POST", api.PathPropose, `{"v":1,"conquer":{}}`, 400, `unknown key "conquer"`},
		{"GET", api.PathEvents + "?after=x", ``, 400, `after: "x" is not the index of an event`},
		{"GET", api.PathEvents + "?after=-1", ``, 400, `after: "-1"`},
		{"GET", api.PathEvents + "?before=1", ``, 400, `unknown key "before"`},
		{"GET", api.PathWhy + "nope", ``, 400, `"nope"`},
		{"GET", api.PathScale, ``, 405, "the method must be POST"},
		{"DELETE", api.PathStatus, ``, 405, "the method must be GET"},
		{"GET", "/v2/status", ``, 404, "/v2/status is not a path"},
	} {
		status, b := raw(t, c, base, x.method, x.path, x.body)
		var p api.Problem
		if err := json.Unmarshal(b, &p); err != nil {
			t.Errorf("%s %s %.60s: the answer is not a Problem: %.100s", x.method, x.path, x.body, b)
		}
		if status != x.status || !strings.Contains(p.Error, x.says) {
			t.Errorf("%s %s %.60s: %d %q, want %d ... %s", x.method, x.path, x.body, status, p.Error, x.status, x.says)
		}
	}
	if n := mesh.Running("n8n"); n != 1 {
		t.Errorf("wrong requests changed n8n to %d machines", n)
	}
	r, err := http.NewRequest("GET", base+api.PathEvents, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Flymesh-Hops", "many")
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("a wrong hop counter: %d", resp.StatusCode)
	}
}

// FuzzBody throws bodies at every handler that takes one. Whatever comes: the
// answer is JSON, no fault of the server, and no service leaves its bounds.
func FuzzBody(f *testing.F) {
	paths := []string{api.PathScale, api.PathPause, api.PathResume}
	for i, b := range []string{
		`{"service":"n8n","delta":1,"reason":"x","by":"ada"}`, `{"service":"n8n","for":1800000000000}`, `{"service":"n8n"}`,
		`{"service":"n8n","target":3}`, ``, `{}`, `null`, `[1]`, `{"service":null,"delta":1e99}`, "{\"service\":\"\x00\xff\"}",
	} {
		f.Add(uint8(i), []byte(b))
	}
	m := apitest.New("n8n")
	a := m.Agent("m1")
	m.Lead(a, "")
	path := filepath.Join(tempDir(f), "a.sock")
	s, err := api.NewServer(api.Options{Backend: a, Socket: path})
	if err != nil {
		f.Fatal(err)
	}
	go s.Run(f.Context())
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	f.Fuzz(func(t *testing.T, i uint8, body []byte) {
		p := paths[int(i)%len(paths)]
		status, b := raw(t, c, "http://agent", "POST", p, string(body))
		switch status {
		case 200, 400, 409:
		default:
			t.Fatalf("POST %s %q: %d %s", p, body, status, b)
		}
		if !json.Valid(b) {
			t.Fatalf("POST %s %q: %s", p, body, b)
		}
		var problem api.Problem
		if err := json.Unmarshal(b, &problem); status != 200 && (err != nil || problem.Error == "" || problem.Code == "") {
			t.Fatalf("POST %s %q: %s", p, body, b)
		}
		if n := m.Running("n8n"); n < 1 || n > apitest.Max {
			t.Fatalf("POST %s %q: n8n has %d machines", p, body, n)
		}
	})
}
