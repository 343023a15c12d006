package config

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// What a job is when the file does not say.
const (
	jobTimeout = 30 * time.Minute
	jobMisfire = time.Hour
)

var (
	envHeader = regexp.MustCompile(`^[A-Za-z0-9-]+=[A-Za-z_][A-Za-z0-9_]*$`)
	jobArg    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,62}=`)
)

func readJob(t *table, name string, c *Config) Job {
	j := Job{
		Name:       name,
		Service:    t.need("service", "n8n"),
		Cron:       t.str("cron", ""),
		URL:        t.str("url", ""),
		Method:     t.str("method", http.MethodPost, http.MethodPost, http.MethodGet, http.MethodPut),
		HeadersEnv: t.list("headers_env", nil, "[]"),
		Status:     t.count("status", 0, 0, 599),
		Expect:     t.str("expect", ""),
		Command:    t.list("command", nil, "[]"),
		Args:       t.list("args", nil, "[]"),
		Timeout:    t.span("timeout", jobTimeout, time.Second, 24*time.Hour),
		Misfire:    t.span("misfire", jobMisfire, time.Second, 7*24*time.Hour),
	}
	if !jobName.MatchString(name) {
		t.f.bad(t.path, "", "job names are letters, digits, dashes and underscores, at most 63, and begin with a letter")
	}
	known := make([]string, 0, len(c.Services))
	for _, s := range c.Services {
		known = append(known, s.Name)
	}
	if s, ok := c.Service(j.Service); j.Service != "" && !ok {
		t.bad("service", "must be %s%s", oneOf(known), didYouMean(j.Service, known))
	} else if ok && !s.Policy.Pinned {
		t.bad("service", "must be a service with pinned = true, or the job could run on two machines: set pinned in [service.%s]", s.Name)
	}
	if j.Cron != "" && !isCron(j.Cron) {
		t.bad("cron", `must be five fields in UTC: minute hour day month weekday, e.g. "0 2 * * *"`)
	}
	j.check(t)
	return j
}

// check holds the keys of the work itself against each other.
func (j Job) check(t *table) {
	switch u, err := url.Parse(j.URL); {
	case (j.URL == "") == (len(j.Command) == 0):
		t.f.bad(t.path, "", `needs one of url, e.g. "http://127.0.0.1:5678/webhook/nightly", and command, e.g. ["/app/nightly.sh"]`)
	case j.URL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == ""):
		t.bad("url", "must be a URL with http or https")
	case u.User != nil:
		t.bad("url", "must have no user or password: this file is in every image; use headers_env")
	}
	if j.Status != 0 && j.Status < 100 {
		t.bad("status", "must be an HTTP status, or 0 for any of 200 to 299")
	}
	if j.Expect != "" && !strings.Contains(j.Expect, "=") {
		t.bad("expect", `must be "FIELD=VALUE", e.g. "status=ok"`)
	}
	each(t, "headers_env", j.HeadersEnv, envHeader, `must be "HEADER=VARIABLE", the variable of the environment that has the value`)
	each(t, "args", j.Args, jobArg, `must be "name=value"`)
}

func each(t *table, key string, list []string, form *regexp.Regexp, must string) {
	for i, v := range list {
		if !form.MatchString(v) {
			t.f.bad(fmt.Sprintf("%s[%d]", t.at(key), i), literal(v), "%s", must)
		}
	}
}
