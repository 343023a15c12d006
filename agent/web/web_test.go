package web

import (
	"bufio"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const secret = "a-token-that-nobody-guesses"

func newPage(t testing.TB) *Page {
	t.Helper()
	p, err := New(Options{
		Data: func(context.Context) ([]byte, error) { return []byte(`{"status":{"mesh":"m"}}`), nil },
		History: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "history of "+r.URL.Query().Get("service"))
		},
		Token: secret, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask sends one request as if from an address.
func ask(p *Page, from, host, target string, edit func(*http.Request)) *http.Response {
	r := httptest.NewRequest(http.MethodGet, target, http.NoBody)
	r.RemoteAddr, r.Host = from, host
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result()
}

func TestWhoMaySeeThePage(t *testing.T) {
	p := newPage(t)
	const here, away = "127.0.0.1:5000", "[fdaa::9]:5000"
	cookie := func(v string) func(*http.Request) {
		return func(r *http.Request) { r.AddCookie(&http.Cookie{Name: cookieName, Value: v}) }
	}
	bearer := func(v string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+v) }
	}
	for name, c := range map[string]struct {
		from, host, target string
		edit               func(*http.Request)
		want               int
	}{
		"from the machine":               {here, "127.0.0.1:9470", "/", nil, 200},
		"from the machine by localhost":  {"[::1]:5", "localhost:9470", "/", nil, 200},
		"by a name that is made to fit":  {here, "evil.example:9470", "/", nil, 401},
		"a stranger":                     {away, "[fdaa::3]:9470", "/", nil, 401},
		"a stranger who names localhost": {away, "localhost:9470", "/live", nil, 401},
		"a stranger asks for the past":   {away, "x", "/v1/history?service=n8n", nil, 401},
		"a stranger asks for the script": {away, "x", "/assets/page.js", nil, 401},
		"a stranger forwards himself":    {away, "x", "/", func(r *http.Request) { r.Header.Set("X-Forwarded-For", "127.0.0.1") }, 401},
		"a cookie":                       {away, "x", "/", cookie(secret), 200},
		"a wrong cookie":                 {away, "x", "/", cookie("no"), 401},
		"a bearer":                       {away, "x", "/v1/history?service=n8n", bearer(secret), 200},
		"an empty bearer":                {away, "x", "/", bearer(""), 401},
		"the token in the address":       {away, "x", "/?token=" + secret, nil, 303},
		"a wrong token":                  {away, "x", "/?token=no", nil, 401},
		"the token elsewhere":            {away, "x", "/v1/history?token=" + secret, nil, 401},
		"a path that is not there":       {here, "127.0.0.1", "/v1/scale", nil, 404},
		"out of the assets":              {here, "127.0.0.1", "/assets/../web.go", nil, 307},
		"a post":                         {here, "127.0.0.1", "/", func(r *http.Request) { r.Method = http.MethodPost }, 405},
	} {
		resp := ask(p, c.from, c.host, c.target, c.edit)
		if resp.StatusCode != c.want {
			t.Errorf("%s: status %d, want %d", name, resp.StatusCode, c.want)
		}
		if got := resp.Header.Get("Content-Security-Policy"); got != policy {
			t.Errorf("%s: policy %q", name, got)
		}
	}
	resp := ask(p, away, "x", "/?token="+secret, nil)
	if c := resp.Cookies(); len(c) != 1 || !c[0].HttpOnly || c[0].SameSite != http.SameSiteStrictMode || resp.Header.Get("Location") != "/" {
		t.Errorf("cookie %v, location %q", c, resp.Header.Get("Location"))
	}
	none, err := New(Options{History: p.o.History})
	if err != nil {
		t.Fatal(err)
	}
	if resp := ask(none, away, "x", "/", cookie("")); resp.StatusCode != 401 {
		t.Errorf("without a token an empty one opens: %d", resp.StatusCode)
	}
}

// TestThePageAsksNobodyElse holds that no file names another host, and that no
// script or style is inline, which the policy would refuse.
func TestThePageAsksNobodyElse(t *testing.T) {
	p := newPage(t)
	elsewhere := regexp.MustCompile(`(?:https?:)?//[a-z0-9-]+\.[a-z]{2,}`)
	total := 0
	for name, a := range p.assets {
		total += len(a.gzip)
		text := string(a.plain)
		if !strings.Contains(name, "/vendor/") {
			for _, m := range elsewhere.FindAllString(text, -1) {
				if m != "http://www.w3.org" && m != "//www.w3.org" {
					t.Errorf("%s names %s", name, m)
				}
			}
			for _, bad := range []string{"innerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=\"", "<style", "onclick="} {
				if strings.Contains(text, bad) {
					t.Errorf("%s uses %s", name, bad)
				}
			}
		}
	}
	if total > 60<<10 {
		t.Errorf("%d bytes in all, compressed; want at most 60 KiB", total)
	}
	index := string(p.assets["/assets/index.html"].plain)
	for _, m := range regexp.MustCompile(`(?:src|href)="(/assets/[^"]+)"`).FindAllStringSubmatch(index, -1) {
		if _, ok := p.assets[m[1]]; !ok {
			t.Errorf("index.html asks for %s, which is not there", m[1])
		}
	}
}

// TestContrast holds that every colour that text is written in can be read on
// everything that it is written on, in light and in dark (WCAG AA).
func TestContrast(t *testing.T) {
	css := string(newPage(t).assets["/assets/page.css"].plain)
	schemes := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(css, -1)
	if len(schemes) != 2 {
		t.Fatalf("%d sets of colours, want a light and a dark one", len(schemes))
	}
	for i, s := range schemes {
		colors := map[string]float64{}
		for _, m := range regexp.MustCompile(`--([a-z]+): #([0-9a-f]+);`).FindAllStringSubmatch(s[1], -1) {
			colors[m[1]] = luminance(t, m[2])
		}
		for _, text := range []string{"ink", "soft", "mark", "good", "warn", "bad", "up", "down"} {
			for _, ground := range []string{"bg", "card", "well", "hint"} {
				a, b := colors[text], colors[ground]
				if ratio := (max(a, b) + 0.05) / (min(a, b) + 0.05); ratio < 4.5 {
					t.Errorf("scheme %d: %s on %s has a contrast of %.2f, want 4.5", i, text, ground, ratio)
				}
			}
		}
	}
}

// luminance is the relative luminance of a colour such as fff or 1a7f4b.
func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	if len(hex) == 3 {
		hex = strings.Repeat(hex[:1], 2) + strings.Repeat(hex[1:2], 2) + strings.Repeat(hex[2:], 2)
	}
	n, err := strconv.ParseUint(hex[:6], 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	part := func(shift int) float64 {
		x := float64(n>>shift&255) / 255
		if x <= 0.03928 {
			return x / 12.92
		}
		return math.Pow((x+0.055)/1.055, 2.4)
	}
	return 0.2126*part(16) + 0.7152*part(8) + 0.0722*part(0)
}

func TestAssetsAreCompressedAndKept(t *testing.T) {
	p := newPage(t)
	resp := ask(p, "127.0.0.1:1", "localhost", "/assets/page.js", func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip") })
	z, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); err != nil || string(b) != string(p.assets["/assets/page.js"].plain) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	again := ask(p, "127.0.0.1:1", "localhost", "/assets/page.js", func(r *http.Request) { r.Header.Set("If-None-Match", resp.Header.Get("Etag")) })
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("asked again: %d", again.StatusCode)
	}
}

func TestLive(t *testing.T) {
	s := httptest.NewServer(newPage(t))
	defer s.Close()
	for range maxLive + 3 { // slots come back
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/live", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		var resp *http.Response
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if resp, err = http.DefaultClient.Do(r); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode == 200 || time.Now().After(end) {
				break
			}
			resp.Body.Close()
		}
		b := bufio.NewReader(resp.Body)
		b.ReadString('\n')
		if line, err := b.ReadString('\n'); err != nil || line != "data: {\"status\":{\"mesh\":\"m\"}}\n" {
			t.Fatalf("line %q, %v (status %d)", line, err, resp.StatusCode)
		}
		cancel()
		resp.Body.Close()
	}
}

func TestTooManyFollowers(t *testing.T) {
	p := newPage(t)
	for range maxLive {
		p.live <- struct{}{}
	}
	if resp := ask(p, "127.0.0.1:1", "localhost", "/live", nil); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more follower: %d", resp.StatusCode)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("GET", "/", "127.0.0.1:1", "localhost", "")
	f.Add("GET", "/assets/%2e%2e/web.go", "[::1]:1", "[::1]", "Bearer x")
	f.Add("OPTIONS", "/v1/history?service=%00", "x", "", "Bearer ")
	p := newPage(f)
	f.Fuzz(func(t *testing.T, method, target, from, host, auth string) {
		r, err := http.NewRequest(method, "http://h"+target, http.NoBody)
		if err != nil || r.URL.Path == "/live" {
			return
		}
		r.RemoteAddr, r.Host = from, host
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if !p.allowed(r) && w.Code == 200 {
			t.Errorf("%s %s from %q, host %q: 200", method, target, from, host)
		}
	})
}
