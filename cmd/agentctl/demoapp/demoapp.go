// Package demoapp is the app of the demo's machines: a stand-in for n8n, an
// embeddings server, a static site or Redis that does real work. A request
// burns a set amount of CPU time in a worker pool of fixed size behind a
// first-in-first-out queue, so latency, queue depth and CPU pressure rise and
// fall as they do in the server that it stands for, and the metrics carry that
// server's names.
//
// It differs from the real servers where this is said: histogram buckets are
// finer, a job whose client has gone is not run, and such a request is counted
// as an error.
package demoapp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"
)

// Options is the command line of one stand-in app.
type Options struct {
	Kind       string        `required:"" enum:"n8n,embeddings,web,redis" help:"server to stand in for (${enum})"`
	Listen     string        `default:"$FLY_PRIVATE_IP:8080" help:"address to serve on; variables of the environment are filled in"`
	Work       time.Duration `default:"15ms" help:"CPU time that one request burns"`
	Workers    int           `default:"2" help:"requests worked on at once"`
	QueueLimit int           `default:"10000" help:"waiting requests over which a request is refused with 429"`
	LoadDelay  time.Duration `default:"1s" help:"embeddings: time until the model is loaded"`
	Dimensions int           `default:"384" help:"embeddings: length of a vector"`
	Cores      float64       `default:"0" env:"FLYMESH_CPU_ALLOWANCE" help:"cores that the machine may use, where no cgroup quota holds it to that (0: no limit of its own)"`
}

// drainTimeout bounds how long the end waits for the requests that are under way.
const drainTimeout = 10 * time.Second

// app is one kind of server: its routes, and what it runs besides HTTP.
type app struct {
	handler http.Handler
	pool    *pool                       // nil: the kind has none
	start   func(context.Context) error // nil, or work to be done after the port is open
}

// Run serves until ctx ends, then finishes the requests that are under way and
// returns. It owns every goroutine and process that it starts.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	if o.Workers < 1 || o.QueueLimit < 1 || o.Work < 0 {
		return errors.New("start demo app: workers and queue limit must be at least 1, work at least 0")
	}
	listen := os.ExpandEnv(o.Listen)
	log = log.With("component", "demo_app", "kind", o.Kind)
	if o.Kind == "redis" {
		return runRedis(ctx, listen, log)
	}
	var a app
	switch o.Kind {
	case "n8n":
		a = newN8N(o)
	case "embeddings":
		a = newEmbeddings(o)
	case "web":
		a = newWeb()
	default:
		return fmt.Errorf("start demo app: unknown kind %q", o.Kind)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("start demo app: %w", err)
	}
	log.Info("app serves", "addr", l.Addr().String(), "work", o.Work.String(), "workers", o.Workers)
	return serve(ctx, l, a, log)
}

// serve runs a on l until ctx ends. The pool outlives the server, because the
// requests that drain still need it.
func serve(ctx context.Context, l net.Listener, a app, log *slog.Logger) error {
	var stopPool func()
	if a.pool != nil {
		stopPool = a.pool.start()
		defer stopPool()
	}
	srv := &http.Server{Handler: a.handler, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	loaded := make(chan error, 1)
	if a.start != nil {
		go func() { loaded <- a.start(ctx) }()
	} else {
		loaded <- nil
	}

	var failed error
	select {
	case failed = <-ended:
		ended <- nil
	case <-ctx.Done():
	}
	log.Info("app drains")
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		_ = srv.Close() // cuts what did not finish in time
		failed = errors.Join(failed, fmt.Errorf("drain demo app: %w", err))
	}
	<-ended
	if err := <-loaded; err != nil && ctx.Err() == nil {
		failed = errors.Join(failed, err)
	}
	if errors.Is(failed, http.ErrServerClosed) {
		return nil
	}
	return failed
}
