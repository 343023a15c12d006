package agent

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"flymesh/agent/config"
	"flymesh/agent/proxy"
	"flymesh/probes"
	"flymesh/probes/bull"
	"flymesh/probes/embeddings"
	"flymesh/probes/host"
	probehttp "flymesh/probes/http"
	"flymesh/probes/n8n"
	"flymesh/probes/prom"
	proberedis "flymesh/probes/redis"
	"flymesh/probes/report"
)

// prober makes the probe that mesh.toml describes. root is the process whose
// tree is the machine's, where no cgroup and no machine tells.
func prober(p config.Probe, root int, window time.Duration, role func() report.AppRole) (probes.Prober, error) {
	url, err := expand(p.URL)
	if err != nil {
		return nil, err
	}
	addr, err := expand(p.Addr)
	if err != nil {
		return nil, err
	}
	switch p.Type {
	case "host":
		cores, err := host.Allowance(p.CPU, os.Getenv(host.AllowanceEnv))
		if err != nil {
			return nil, err
		}
		return host.New(host.Options{Root: root, Cores: cores}), nil
	case "http":
		return probehttp.New(probehttp.Options{URL: url, Status: p.Status, Body: p.Body})
	case "prometheus":
		return prom.New(prom.Options{
			URL: url, Latency: p.Latency, Requests: p.Requests, Errors: p.Errors, InFlight: p.InFlight, Queue: p.Queue, Scope: scope(p.Scope), Window: window,
		})
	case "redis":
		return proberedis.New(proberedis.Options{Server: redisServer(p, addr)})
	case "bull":
		return bull.New(bull.Options{Server: redisServer(p, addr), Prefix: p.Prefix})
	case "n8n":
		o := n8n.Options{
			URL: url, Role: n8n.Role(p.Role), Redis: redisServer(p, addr), Prefix: p.Prefix,
			Webhooks: p.Webhooks, Canary: p.Canary, Window: window, Elsewhere: p.Elsewhere,
		}
		if p.Role != "auto" {
			return n8n.New(o)
		}
		o.Role = n8n.Main
		main, err := n8n.New(o)
		if err != nil {
			return nil, err
		}
		o.Role = n8n.Worker
		if o.URL, err = expand(p.WorkerURL); err != nil {
			return nil, err
		}
		worker, err := n8n.New(o)
		return byRole{Prober: main, replica: worker, role: role}, err
	case "embeddings":
		return embeddings.New(embeddings.Options{
			URL: url, Dialect: p.Dialect, Model: p.Model, Dimension: p.Dimension, Window: window, Elsewhere: p.Elsewhere,
		})
	}
	return nil, fmt.Errorf("there is no probe of type %q", p.Type)
}

// byRole asks the primary's prober while a role-aware command runs the primary,
// else the replica's: of the requests that only a primary takes it has none.
type byRole struct {
	probes.Prober
	replica probes.Prober
	role    func() report.AppRole
}

// Probe implements probes.Prober.
func (b byRole) Probe(ctx context.Context) (probes.Reading, error) {
	if b.role() == report.Primary {
		return b.Prober.Probe(ctx)
	}
	m, err := b.replica.Probe(ctx)
	m.Requests, m.Errors = report.Of(0), report.Of(0)
	return m, err
}

// redisServer takes the password from the environment variable that mesh.toml
// names: the file is in every image. Without it Redis says NOAUTH.
func redisServer(p config.Probe, addr string) proberedis.Server {
	s := proberedis.Server{Addr: addr}
	if p.PasswordEnv != "" {
		s.Password = os.Getenv(p.PasswordEnv)
	}
	return s
}

func scope(s string) report.QueueScope {
	if s == "service" {
		return report.QueueService
	}
	return report.QueueMachine
}

// openProxy begins to listen in front of the app, where mesh.toml asks for it.
func openProxy(a *agent) (*proxy.Proxy, error) {
	if a.svc.Proxy.Listen == "" {
		return nil, nil
	}
	listen, err := expand(a.svc.Proxy.Listen)
	if err != nil {
		return nil, err
	}
	target, err := expand(a.svc.Proxy.Target)
	if err != nil {
		return nil, err
	}
	return proxy.Open(proxy.Options{Listen: listen, Target: target, Window: covers * a.cfg.Mesh.ReportEvery, Logger: a.log})
}

// expand puts FLY_* facts of this machine into a probe's address, so that one
// mesh.toml serves every machine: "http://${FLY_PRIVATE_IP}:8080/metrics".
func expand(s string) (string, error) {
	var missing []string
	out := os.Expand(s, func(name string) string {
		v := os.Getenv(name)
		if !strings.HasPrefix(name, "FLY_") || v == "" {
			missing = append(missing, name)
			return ""
		}
		if name == "FLY_PRIVATE_IP" && strings.Contains(v, ":") {
			return "[" + v + "]"
		}
		return v
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("expand %q: %s is not set (only FLY_* variables are known here)", s, strings.Join(missing, ", "))
	}
	return out, nil
}
