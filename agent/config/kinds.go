package config

import (
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"flymesh/leader/decide"
)

// embeddingsSupply is what the dialect can tell: Ollama and OpenAI-compatible
// servers have nothing to ask but the embed itself.
func (p Probe) embeddingsSupply() []decide.Metric {
	switch {
	case p.Dialect != "tei" && p.Dialect != "infinity":
		return nil
	case p.Elsewhere:
		return []decide.Metric{decide.Queue}
	}
	return []decide.Metric{decide.P95, decide.Queue, decide.ErrorRate}
}

var envName = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`)

// readRedis reads where a Redis is and where its password is.
func readRedis(t *table, d *Probe) {
	d.Addr = t.need("addr", "127.0.0.1:6379")
	if d.Addr != "" && !isHostPort(d.Addr) {
		t.bad("addr", `must be "host:port", e.g. "127.0.0.1:6379"`)
	}
	d.PasswordEnv = t.str("password_env", d.PasswordEnv)
	if d.PasswordEnv != "" && !envName.MatchString(d.PasswordEnv) {
		// What was given may be the password: it is not repeated.
		t.f.bad(t.at("password_env"), "", `must be the name of an environment variable, e.g. "REDIS_PASSWORD"; never the password: this file is in every image`)
	}
}

func readBull(t *table, d *Probe) {
	d.Prefix = t.str("prefix", d.Prefix)
	if d.Prefix == "" || strings.HasSuffix(d.Prefix, ":") {
		t.bad("prefix", `must be the key prefix and the queue's name, e.g. "bull:jobs"`)
	}
}

func readN8N(t *table, d *Probe) {
	d.URL = readServer(t, "http://127.0.0.1:5678")
	d.Role = t.str("role", d.Role, "main", "worker", "auto")
	d.WorkerURL = t.str("worker_url", d.WorkerURL)
	switch u, err := url.Parse(plain(d.WorkerURL)); {
	case (d.Role == "auto") != (d.WorkerURL != ""):
		t.bad("worker_url", `belongs to role = "auto": the worker's health port, e.g. "http://127.0.0.1:5679"`)
	case d.WorkerURL != "" && (err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.Path != ""):
		t.bad("worker_url", `must be an http URL without a path, e.g. "http://127.0.0.1:5679"`)
	}
	readRedis(t, d)
	readBull(t, d)
	d.Webhooks = t.list("webhooks", d.Webhooks, literal(d.Webhooks))
	d.Canary = t.str("canary", d.Canary)
	if d.Canary != "" && !strings.HasPrefix(d.Canary, "/") {
		t.bad("canary", `must be a path, e.g. "/webhook/ping"`)
	}
	if d.Role == "worker" {
		for _, key := range []string{"webhooks", "canary"} {
			if t.has(key) {
				t.bad(key, "is of a main: workers take no webhooks")
			}
		}
	}
}

func readEmbeddings(t *table, d *Probe) {
	d.URL = readServer(t, "http://127.0.0.1:3000")
	d.Dialect = t.str("dialect", d.Dialect, "tei", "infinity", "ollama", "openai")
	d.Model = t.str("model", d.Model)
	d.Dimension = t.count("dimension", d.Dimension, 0, 65536)
	if d.Model == "" && d.Dialect != "tei" {
		t.f.bad(t.at("model"), "", "is missing; dialect %q needs the model's name", d.Dialect)
	}
}

// readServer reads the URL of a server whose paths are known.
func readServer(t *table, example string) string {
	raw := readURL(t, example)
	if u, err := url.Parse(plain(raw)); raw != "" && err == nil && u.Host != "" && strings.Trim(u.Path, "/") != "" {
		t.bad("url", "must be without a path, e.g. %q: the probe knows its paths", example)
	}
	return raw
}

// readRedisRoles reads [service.NAME.redis].
func readRedisRoles(t *table, s Service, d Redis) Redis {
	r := Redis{
		Failover:      t.str("failover", d.Failover, FailoverOff, FailoverManual, FailoverAuto),
		FailoverAfter: t.span("failover_after", d.FailoverAfter, 5*time.Second, 24*time.Hour),
		ChatKeys:      t.str("chat_keys", d.ChatKeys),
	}
	_, probed := s.RedisProbe()
	switch {
	case r.Failover == FailoverOff:
	case !probed:
		t.bad("failover", `needs a probe of type "redis": it says where the server is`)
	case !s.Policy.Pinned:
		t.bad("failover", "needs pinned = true: the pinned machine is the primary")
	case s.Policy.Baseline < 2:
		t.bad("failover", "needs baseline = 2 or more: a primary and its candidate")
	}
	return r
}

// RedisProbe returns the probe that says where the Redis of the service's
// machines is.
func (s Service) RedisProbe() (Probe, bool) {
	i := slices.IndexFunc(s.Probes, func(p Probe) bool { return p.Type == probeRedis })
	if i < 0 {
		return Probe{}, false
	}
	return s.Probes[i], true
}

// readProxy reads [service.NAME.proxy]: both keys or none.
func readProxy(t *table) Proxy {
	p := Proxy{Listen: t.str("listen", ""), Target: t.str("target", "")}
	switch {
	case p == Proxy{}:
		return p
	case p.Listen == "" || p.Target == "":
		t.f.bad(t.path, "", "needs both listen and target")
		return Proxy{}
	}
	host, port, err := net.SplitHostPort(p.Listen)
	if err != nil || !isHostPort("x:"+port) {
		t.bad("listen", `must be ":port" or "host:port", e.g. ":8080"`)
	}
	u, err := url.Parse(plain(p.Target))
	switch {
	case err == nil && u.User != nil:
		t.f.bad(t.at("target"), "", "must not hold a user or password: this file is in every image")
	case err != nil || u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "":
		t.bad("target", `must be the app's http address without a path, e.g. "http://127.0.0.1:3000"`)
	case u.Port() == port && slices.Contains([]string{"", u.Hostname(), "0.0.0.0", "[::]"}, host):
		t.bad("target", "must not be the proxy itself: let the app listen on another port than %s", port)
	}
	return p
}
