package openapi

import (
	"maps"
	"regexp"
	"slices"
	"sync"

	"flymesh/leader/flyapi/flytest"
)

// Known is something that the document has wrong, or leaves out, while the
// API does it: what fly-go sends and decodes, and what was reported of the
// real answers, say so.
type Known struct {
	Name string // what it is about
	call *regexp.Regexp
	at   *regexp.Regexp
	text *regexp.Regexp
}

func known(name, call, at, text string) Known {
	return Known{name, regexp.MustCompile(call), regexp.MustCompile("^" + at + "$"), regexp.MustCompile(text)}
}

// KnownErrors returns all of them.
func KnownErrors() []Known {
	const undocumented, machine = "is not documented", ` /v1/apps/\{app_name\}/machines/\{machine_id\}`
	return []Known{
		known("statuses of failure", "", "(401|403|404|408|409|412|422|429|503)", "is not a documented status"),
		known("a lease is released without its nonce", "^DELETE"+machine+"/lease", "400", "is not a documented status"),
		known("leases come in an envelope", "^(GET|POST)"+machine+"/lease$", `20[01]\.(data|status)`, undocumented),
		known("the ttl of a lease is a query parameter", "^POST"+machine+"/lease$", "query ttl", undocumented),
		known("kill for force", "^DELETE"+machine+"$", "query kill", undocumented),
		known("force_stop of restart", "^POST"+machine+"/restart$", "query force_stop", undocumented),
		known("the signal is a number", "^POST"+machine+"/signal$", `request\.signal`, "is number, not string"),
		known("autostop is a boolean", machine+"$|machines$", `.*\.services\[\]\.autostop`, "is boolean, not string"),
		known("the instance key of a service may be null", machine+"$|machines$", `.*\.services\[\]\.force_instance_key`, "is null, not string"),
		known("stop names its machine", "^POST"+machine+"/stop$", `request\.id`, undocumented),
		known("a listing by metadata", "^GET /v1/apps/\\{app_name\\}/machines$", `query metadata\..*`, undocumented),
		known("no config while the host is away", "^GET", `200(\[\])?\.config`, "is null, not object"),
		known("a null value removes metadata", "^(PUT|PATCH)"+machine+"/metadata$", `request\.metadata\.\*`, "is null, not string"),
		known("regions and placements in PascalCase", "/v1/platform/", `200\.(Regions|Nearest)`, undocumented),
		known("placements without compute or weights", "^POST /v1/platform/placements", `request\.(compute|weights)`, "is null, not object"),
		known("an app is waited for", "^POST /v1/apps$", `query wait`, undocumented),
		known("the role of an app", "^POST /v1/apps$", `request\.app_role_id`, undocumented),
		known("the emulator runs no exec", "^POST"+machine+"/exec$", "501", "is not a documented status"),
	}
}

// Judge checks traffic and lets pass what is known. Safe for use from many
// goroutines: its Watch is a flytest.Options.Watch.
type Judge struct {
	doc   *Document
	known []Known

	mu    sync.Mutex // guards what follows
	seen  int
	used  map[string]int
	fresh map[Problem]int
}

// NewJudge returns a Judge that knows the given errors of the document.
func NewJudge(d *Document, known []Known) *Judge {
	return &Judge{doc: d, known: known, used: make(map[string]int), fresh: make(map[Problem]int)}
}

// Watch checks one exchange.
func (j *Judge) Watch(x flytest.Exchange) {
	found := j.doc.Check(x)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen++
	for _, p := range found {
		i := slices.IndexFunc(j.known, func(k Known) bool {
			return k.call.MatchString(p.Call) && k.at.MatchString(p.At) && k.text.MatchString(p.Text)
		})
		if i < 0 {
			j.fresh[p]++
		} else {
			j.used[j.known[i].Name]++
		}
	}
}

// Seen returns how many exchanges were checked.
func (j *Judge) Seen() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seen
}

// Problems returns every difference that is not known, each once.
func (j *Judge) Problems() []Problem {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.SortedFunc(maps.Keys(j.fresh), func(a, b Problem) int {
		if a.String() < b.String() {
			return -1
		}
		return 1
	})
}

// Unused returns the names of known errors that no exchange has shown.
func (j *Judge) Unused() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, k := range j.known {
		if j.used[k.Name] == 0 {
			out = append(out, k.Name)
		}
	}
	return out
}
