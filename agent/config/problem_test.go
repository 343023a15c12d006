package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryProblemIsSaidWithKeyLineAndRemedy appends text to a valid file and
// compares every line of the answer.
func TestEveryProblemIsSaidWithKeyLineAndRemedy(t *testing.T) {
	const prom = "[[service.n8n.probe]]\ntype = \"prometheus\"\nurl = \"http://127.0.0.1/metrics\"\n"
	for _, tt := range []struct {
		name, text string
		want       []string // without "mesh.toml:"
	}{
		{"max under baseline", "baseline = 2\nmax = 1", []string{`7: service.n8n.max = 1: must be at least baseline (2)`}},
		{"baseline under 1", "baseline = 0", []string{`6: service.n8n.baseline = 0: must be between 1 and 1000`}},
		{"unknown key", "basline = 1", []string{`6: service.n8n.basline = 1: unknown key; did you mean "baseline"?`}},
		{"key of another table", "report_every = \"1s\"", []string{`6: service.n8n.report_every = "1s": unknown key; it belongs in [mesh]`}},
		{"unknown table", "[services.x]", []string{`6: services = {...}: unknown key; did you mean "service"?`}},
		{"far key", "[mush.x]\nq = 1", []string{`6: mush = {...}: unknown key; did you mean "mesh"?`}},
		{"wrong types, all at once", "baseline = \"2\"\nvote2 = 1\ncooldown = 300\npinned = \"yes\"\nup = \"cpu > 1 for 3m\"\ntargets = 3\nprobe = 4", []string{
			`6: service.n8n.baseline = "2": must be a whole number`,
			`7: service.n8n.vote2 = 1: unknown key; did you mean "vote"?`,
			`8: service.n8n.cooldown = 300: must be a duration in quotes, e.g. "30s", "3m" or "1h30m"`,
			`9: service.n8n.pinned = "yes": must be true or false, without quotes`,
			`10: service.n8n.up = "cpu > 1 for 3m": must be a list of strings, e.g. ["a", "b"]`,
			`11: service.n8n.targets = 3: must be a table, e.g. [service.n8n.targets]`,
			`12: service.n8n.probe = 4: must be an array of tables with two brackets, e.g. [[service.n8n.probe]]`,
		}},
		{"durations", "cooldown = \"5 minutes\"\nready_grace = \"0s\"", []string{
			`6: service.n8n.cooldown = "5 minutes": must be a duration such as "500ms", "30s", "3m" or "1h30m"`,
			`7: service.n8n.ready_grace = "0s": must be between 1s and 1h`,
		}},
		{"redis without a candidate", "pinned = true\n[service.n8n.redis]\nfailover = \"auto\"\nfailover_after = \"1s\"\n[[service.n8n.probe]]\ntype = \"redis\"\naddr = \"127.0.0.1:6379\"", []string{
			`8: service.n8n.redis.failover = "auto": needs baseline = 2 or more: a primary and its candidate`,
			`9: service.n8n.redis.failover_after = "1s": must be between 5s and 24h`,
		}},
		{"redis of no server", "[service.n8n.redis]\nfailover = \"on\"", []string{`7: service.n8n.redis.failover = "on": must be one of "off", "manual", "auto"; did you mean "off"?`}},
		{"redis without a probe", "[service.n8n.redis]\nfailover = \"manual\"", []string{`7: service.n8n.redis.failover = "manual": needs a probe of type "redis": it says where the server is`}},
		{"negative cooldown", `cooldown = "-1s"`, []string{`6: service.n8n.cooldown = "-1s": must be between 0s and 24h`}},
		{"limits", "stop_mode = \"suspend\"\nbudget_machine_hours = 12\nflap_per_hour = 1\nregions = [\"fra\", \"Frankfurt\", \"fra\"]", []string{
			`6: service.n8n.stop_mode = "suspend": must be "stop" where vote or pinned is true: a machine that wakes up goes on with the vote, locks and jobs it had, on a clock and connections that are old`,
			`7: service.n8n.budget_machine_hours = 12: must be 0 (no limit) or at least 24: the baseline alone (1) costs that in a day`,
			`8: service.n8n.flap_per_hour = 1: must be 0 (no limit) or at least 2: a removal and its return are two`,
			`9: service.n8n.regions[1] = "Frankfurt": must be the code of a Fly region, e.g. "fra"`,
			`9: service.n8n.regions[2] = "fra": is listed twice`,
		}},
		{"words", "kind = \"emmbeddings\"\nmode = \"on\"\ngate = \"boss\"\nowner = \"fly\"\nstop_mode = \"kill\"", []string{
			`6: service.n8n.kind = "emmbeddings": must be one of "n8n", "embeddings", "redis", "web", "app"; did you mean "embeddings"?`,
			`7: service.n8n.mode = "on": must be one of "auto", "up-only", "shadow", "off"; did you mean "off"?`,
			`8: service.n8n.gate = "boss": must be one of "", "leader"`,
			`9: service.n8n.owner = "fly": must be one of "mesh", "proxy"`,
			`10: service.n8n.stop_mode = "kill": must be one of "stop", "suspend"`,
		}},
		{"rules on lines of their own", "up = [\n  \"cpu > 80% for 3m\", # fine\n  \"cpu above 80%\",\n  \"p95 > 1s for 3m\",\n]", []string{
			`8: service.n8n.up[1] = "cpu above 80%": there is no > or < (`,
			`9: service.n8n.up[2] = "p95 > 1s for 3m": no probe of this service supplies p95; add a probe of type "n8n" or "embeddings", one of type "prometheus" with latency = "HISTOGRAM", or a proxy`,
		}},
		{"rule without a source", "down = [\"queue < 3 for 10m\"]\nup = [\"error_rate > 5% for 2m\"]", []string{
			`6: service.n8n.down[0] = "queue < 3 for 10m": no probe of this service supplies queue; add a probe of type "bull", "n8n" or "embeddings", or one of type "prometheus" with queue = "GAUGE"`,
			`7: service.n8n.up[0] = "error_rate > 5% for 2m": no probe of this service supplies error_rate; add a probe of type "n8n" or "embeddings", one of type "prometheus" with errors = "COUNTER{...}" and requests or latency, or a proxy`,
		}},
		{"rule the wrong way", `up = ["cpu < 80% for 3m"]`, []string{`6: service.n8n.up[0] = "cpu < 80% for 3m": rules of up compare with ">"`}},
		{"rule shorter than a report", `up = ["cpu > 80% for 3s"]`, []string{`6: service.n8n.up[0] = "cpu > 80% for 3s": its duration must be at least mesh.report_every (5s), or no report falls into it`}},
		{"rules that contradict", "up = [\"cpu > 30% for 3m\"]", []string{`6: service.n8n.up[0] = "cpu > 30% for 3m": would add a machine where "cpu < 40% for 10m" removes one; its value must not be under that rule's`}},
		{"one app and group twice", "[service.b]\napp = \"acme-n8n\"", []string{`7: service.b.app = "acme-n8n": process group "app" of this app is already service n8n; give one of them its own app or group`}},
		{"names", "[service.N8N]\napp = \"Acme\"", []string{
			`6: service.N8N: service names are lower-case letters, digits and dashes, at most 30, and begin with a letter`,
			`7: service.N8N.app = "Acme": must be the name of a Fly app: lower-case letters, digits and inner dashes`,
		}},
		{"missing app", "[service.b]", []string{`6: service.b.app: is missing; it must be given, e.g. app = "acme-b"`}},
		{"job without pinned", "[job.Nightly]\nservice = \"n8n\"\ncron = \"0 2 * * *\"", []string{
			`6: job.Nightly: needs one of url, e.g. "http://127.0.0.1:5678/webhook/nightly", and command, e.g. ["/app/nightly.sh"]`,
			`7: job.Nightly.service = "n8n": must be a service with pinned = true, or the job could run on two machines: set pinned in [service.n8n]`,
		}},
		{"job on no service", "[job.Nightly]\nservice = \"n9n\"\ncron = \"nightly\"\ntimeuot = \"1h\"", []string{
			`6: job.Nightly: needs one of url, e.g. "http://127.0.0.1:5678/webhook/nightly", and command, e.g. ["/app/nightly.sh"]`,
			`7: job.Nightly.service = "n9n": must be "n8n"; did you mean "n8n"?`,
			`8: job.Nightly.cron = "nightly": must be five fields in UTC: minute hour day month weekday, e.g. "0 2 * * *"`,
			`9: job.Nightly.timeuot = "1h": unknown key; did you mean "timeout"?`,
		}},
		{"cron with seconds or out of range", "pinned = true\n[job.a]\nservice = \"n8n\"\ncron = \"0 0 2 * * *\"\n[job.b]\nservice = \"n8n\"\ncron = \"61 2 * * *\"", []string{
			`7: job.a: needs one of url, e.g. "http://127.0.0.1:5678/webhook/nightly", and command, e.g. ["/app/nightly.sh"]`,
			`9: job.a.cron = "0 0 2 * * *": must be five fields in UTC: minute hour day month weekday, e.g. "0 2 * * *"`,
			`10: job.b: needs one of url, e.g. "http://127.0.0.1:5678/webhook/nightly", and command, e.g. ["/app/nightly.sh"]`,
			`12: job.b.cron = "61 2 * * *": must be five fields in UTC: minute hour day month weekday, e.g. "0 2 * * *"`,
		}},
		{"jobs that differ in case", "pinned = true\n[job.a]\nservice = \"n8n\"\ncron = \"0 2 * * *\"\n[job.A]\nservice = \"n8n\"\ncron = \"1 2 * * *\"", []string{
			`7: job.a: needs one of url, e.g. "http://127.0.0.1:5678/webhook/nightly", and command, e.g. ["/app/nightly.sh"]`,
			`10: job.A: needs one of url, e.g. "http://127.0.0.1:5678/webhook/nightly", and command, e.g. ["/app/nightly.sh"]`,
			`10: job.A: differs from job a in upper and lower case alone; rename one`,
		}},
		{"probe type", "[[service.n8n.probe]]\ntype = \"prometeus\"\nurl = 1", []string{
			`7: service.n8n.probe[0].type = "prometeus": must be one of "host", "http", "prometheus", "redis", "bull", "n8n", "embeddings"; did you mean "prometheus"?`,
		}},
		{"probe without its keys", "[[service.n8n.probe]]\ntype = \"http\"\n[[service.n8n.probe]]\ntype = \"prometheus\"\nurl = \"http://x/\"\n[[service.n8n.probe]]\ntype = \"redis\"\n[[service.n8n.probe]]", []string{
			`6: service.n8n.probe[0].url: is missing; it must be given, e.g. url = "http://127.0.0.1:8080/health"`,
			`8: service.n8n.probe[1]: measures nothing; give it at least one of latency, errors, requests, in_flight, queue`,
			`11: service.n8n.probe[2].addr: is missing; it must be given, e.g. addr = "127.0.0.1:6379"`,
			`13: service.n8n.probe[3].type: is missing; it must be given, e.g. type = "http"`,
		}},
		{"key of another probe", "[[service.n8n.probe]]\ntype = \"host\"\nurl = \"http://x/\"", []string{
			`8: service.n8n.probe[0].url = "http://x/": unknown key; known here: cpu, every, ready, timeout, type`,
		}},
		{"bad URLs", "[[service.n8n.probe]]\ntype = \"http\"\nurl = \"localhost:80\"\n[[service.n8n.probe]]\ntype = \"http\"\nurl = \"http://u:hush@x/\"\n[[service.n8n.probe]]\ntype = \"redis\"\naddr = \"redis\"", []string{
			`8: service.n8n.probe[0].url = "localhost:80": must be an http or https URL, e.g. "http://127.0.0.1:8080/health"`,
			`11: service.n8n.probe[1].url: must not hold a user or password: this file is in every image`,
			`14: service.n8n.probe[2].addr = "redis": must be "host:port", e.g. "127.0.0.1:6379"`,
		}},
		{"inline probes", `probe = [{type = "http", url = "x"}, {type = "host"}]`, []string{
			`6: service.n8n.probe[0].url = "x": must be an http or https URL, e.g. "http://127.0.0.1:8080/health"`,
		}},
		{"errors without requests", prom + `errors = "e"`, []string{`9: service.n8n.probe[0].errors = "e": needs requests or latency beside it: an error rate is errors over requests`}},
		{"scope without queue", prom + "latency = \"h\"\nscope = \"service\"", []string{`10: service.n8n.probe[0].scope = "service": says what queue counts, but there is no queue`}},
		{"two sources", prom + "latency = \"h\"\nqueue = \"q\"\n" + prom + "requests = \"r\"\nqueue = \"q\"", []string{
			`14: service.n8n.probe[1].requests = "r": request count is measured by service.n8n.probe[0].latency already; one probe of a service may say it`,
			`15: service.n8n.probe[1].queue = "q": queue depth is measured by service.n8n.probe[0].queue already; one probe of a service may say it`,
		}},
		{"a proxy measures already", "[service.n8n.proxy]\nlisten = \":8080\"\ntarget = \"http://127.0.0.1:5678\"\n" + prom + "latency = \"h\"\nin_flight = \"g\"", []string{
			`12: service.n8n.probe[0].latency = "h": latency is measured by service.n8n.proxy already; one probe of a service may say it`,
			`12: service.n8n.probe[0].latency = "h": request count is measured by service.n8n.proxy already; one probe of a service may say it`,
			`13: service.n8n.probe[0].in_flight = "g": in-flight count is measured by service.n8n.proxy already; one probe of a service may say it`,
		}},
		{"half a proxy", "[service.n8n.proxy]\nlisten = \":8080\"", []string{`6: service.n8n.proxy: needs both listen and target`}},
		{"a proxy to itself", "[service.n8n.proxy]\nlisten = \":8080\"\ntarget = \"http://127.0.0.1:8080\"", []string{
			`8: service.n8n.proxy.target = "http://127.0.0.1:8080": must not be the proxy itself: let the app listen on another port than 8080`,
		}},
		{"proxy addresses", "[service.n8n.proxy]\nlisten = \"8080\"\ntarget = \"127.0.0.1:5678\"", []string{
			`7: service.n8n.proxy.listen = "8080": must be ":port" or "host:port", e.g. ":8080"`,
			`8: service.n8n.proxy.target = "127.0.0.1:5678": must be the app's http address without a path, e.g. "http://127.0.0.1:3000"`,
		}},
		{"n8n and bull are one queue", "[[service.n8n.probe]]\ntype = \"n8n\"\nurl = \"http://127.0.0.1:5678\"\naddr = \"r:6379\"\n[[service.n8n.probe]]\ntype = \"bull\"\naddr = \"r:6379\"", []string{
			`11: service.n8n.probe[1].type = "bull": queue depth is measured by service.n8n.probe[0].type already; one probe of a service may say it`,
		}},
		{"n8n keys", "[[service.n8n.probe]]\ntype = \"n8n\"\nurl = \"http://127.0.0.1:5678/healthz\"\naddr = \"r:6379\"\nrole = \"worker\"\ncanary = \"ping\"\npassword_env = \"hush hush\"\nprefix = \"bull:\"", []string{
			`8: service.n8n.probe[0].url = "http://127.0.0.1:5678/healthz": must be without a path, e.g. "http://127.0.0.1:5678": the probe knows its paths`,
			`11: service.n8n.probe[0].canary = "ping": must be a path, e.g. "/webhook/ping"`,
			`11: service.n8n.probe[0].canary = "ping": is of a main: workers take no webhooks`,
			`12: service.n8n.probe[0].password_env: must be the name of an environment variable, e.g. "REDIS_PASSWORD"; never the password: this file is in every image`,
			`13: service.n8n.probe[0].prefix = "bull:": must be the key prefix and the queue's name, e.g. "bull:jobs"`,
		}},
		{"n8n of two roles", "[[service.n8n.probe]]\ntype = \"n8n\"\nurl = \"http://127.0.0.1:5678\"\naddr = \"r:6379\"\nrole = \"auto\"", []string{
			`6: service.n8n.probe[0].worker_url: belongs to role = "auto": the worker's health port, e.g. "http://127.0.0.1:5679"`,
		}},
		{"n8n of one role", "[[service.n8n.probe]]\ntype = \"n8n\"\nurl = \"http://127.0.0.1:5678\"\naddr = \"r:6379\"\nworker_url = \"127.0.0.1:5679\"", []string{
			`10: service.n8n.probe[0].worker_url = "127.0.0.1:5679": belongs to role = "auto": the worker's health port, e.g. "http://127.0.0.1:5679"`,
		}},
		{"embeddings keys", "[[service.n8n.probe]]\ntype = \"embeddings\"\nurl = \"http://127.0.0.1:7997\"\ndialect = \"infinty\"\n[[service.n8n.probe]]\ntype = \"embeddings\"\nurl = \"http://127.0.0.1:7997\"\ndialect = \"ollama\"\ndimension = -3", []string{
			`9: service.n8n.probe[0].dialect = "infinty": must be one of "tei", "infinity", "ollama", "openai"; did you mean "infinity"?`,
			`10: service.n8n.probe[1].model: is missing; dialect "ollama" needs the model's name`,
			`14: service.n8n.probe[1].dimension = -3: must be between 0 and 65536`,
		}},
		{"two host probes", "[[service.n8n.probe]]\ntype = \"host\"\n[[service.n8n.probe]]\ntype = \"host\"", []string{`9: service.n8n.probe[1].type = "host": a service has one host probe`}},
		{"targets", "[service.n8n.targets]\nerror_rate = 5\ncpu = \"70\"\nmemory = \"70%\"\nqueue = -1\np95 = 1.5", []string{
			`7: service.n8n.targets.error_rate = 5: must be a ratio between 0 and 1, or a percentage such as "70%"`,
			`8: service.n8n.targets.cpu = "70": must be a ratio between 0 and 1, or a percentage such as "70%"`,
			`10: service.n8n.targets.queue = -1: must be a number between 0 and 1000000000`,
			`11: service.n8n.targets.p95 = 1.5: must be a duration in quotes, e.g. "30s", "3m" or "1h30m"`,
		}},
		{"not TOML", "max = = 3", []string{`6: service.n8n.max: is not TOML: `}},
		{"the same table twice", "[service.n8n]", []string{`6: service: is not TOML: Key 'service.n8n' has already been defined.`}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantProblems(t, head+tt.text, tt.want) })
	}
}

func TestProblemsOfTheMeshTable(t *testing.T) {
	const service = "\n[service.a]\napp = \"a\"\nvote = true"
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"empty file", "", []string{
			` mesh.name: is missing; it must be given, e.g. name = "acme"`,
			` service: at least one service is needed, e.g. [service.web]`,
		}},
		{"no voter", "[mesh]\nname = \"m\"\n[service.a]\napp = \"a\"", []string{
			`3: service: no service has vote = true: nobody could lead the mesh; set it where the Fly tokens are`,
		}},
		{"values", `[mesh]
name = "My Mesh"
anchor_app = "b"
report_every = "100ms"
profile = "slow"
peers = ["host"]
discover = ["dns", "dsn", "dns"]
gossip_port = 0
mesh_port = 9470
socket = ""` + service, []string{
			`1: mesh.health_port = 9470: must differ from mesh_port`,
			`2: mesh.name = "My Mesh": must be lower-case letters, digits and inner dashes, at most 32`,
			`3: mesh.anchor_app = "b": must be the app of a service; did you mean "a"?`,
			`4: mesh.report_every = "100ms": must be between 200ms and 30s`,
			`5: mesh.profile = "slow": must be one of "fast", "default", "wide"`,
			`6: mesh.peers[0] = "host": must be "host:port", e.g. "[fdaa::3]:7946"`,
			`7: mesh.discover[1] = "dsn": must be one of "dns", "api", "peers"; did you mean "dns"?`,
			`7: mesh.discover[2] = "dns": is listed twice`,
			`8: mesh.gossip_port = 0: must be between 1 and 65535`,
			`10: mesh.socket = "": must be a path of 1 to 107 bytes`,
		}},
		{"report too rare", "[mesh]\nname = \"m\"\nreport_every = \"31s\"" + service, []string{`3: mesh.report_every = "31s": must be between 200ms and 30s`}},
		{"nobody to find", "[mesh]\nname = \"m\"\ndiscover = [\"peers\"]" + service, []string{
			`3: mesh.discover = ["peers"]: names peers alone, but peers is empty: no agent could find another`,
		}},
		{"no way to find", "[mesh]\nname = \"m\"\ndiscover = []" + service, []string{`3: mesh.discover = []: must name a way: one of "dns", "api", "peers"`}},
		{"mesh is no table", "mesh = 1" + service, []string{
			`1: mesh = 1: must be a table, e.g. [mesh]`,
			`1: mesh.name: is missing; it must be given, e.g. name = "acme"`,
		}},
		{"service is no table", "mesh.name = \"m\"\nservice.a = 1", []string{
			`2: service.a = 1: must be a table, e.g. [service.NAME]`,
			`2: service.a.app: is missing; it must be given, e.g. app = "m-a"`,
			`2: service: no service has vote = true: nobody could lead the mesh; set it where the Fly tokens are`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantProblems(t, tt.text, tt.want) })
	}
}

// wantProblems compares what Parse says, line by line; a wanted line may be
// the beginning where the rest is the library's.
func wantProblems(t *testing.T, text string, want []string) {
	t.Helper()
	_, err := Parse("mesh.toml", []byte(text))
	if err == nil {
		t.Fatalf("accepted:\n%s", text)
	}
	got := strings.Split(err.Error(), "\n")
	for i := range got {
		got[i] = strings.TrimPrefix(got[i], "mesh.toml:")
		if i < len(want) && (strings.HasSuffix(want[i], "(") || strings.HasSuffix(want[i], ": ")) && strings.HasPrefix(got[i], want[i]) {
			got[i] = want[i]
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("problems of\n%s\n(-want +got):\n%s", text, d)
	}
}
