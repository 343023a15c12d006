package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"
)

// Options of NewServer. An empty address leaves that door shut.
type Options struct {
	Backend    Backend
	Locks      LockBackend  // nil: no locks
	Jobs       JobBackend   // nil: no jobs
	Redis      RedisBackend // nil: nobody asks about Redis
	Raft       Raft         // nil: the paths of the agreement are not served
	TLS        *tls.Config  // of the mesh port; both directions
	Socket     string       // path of the unix socket
	Mesh       string       // host:port
	Health     string       // host:port
	Gatherer   prometheus.Gatherer
	Registerer prometheus.Registerer
	Logger     *slog.Logger
	Page       http.Handler // on the health port, for everything but /health and /metrics; nil: none
}

// Limits and deadlines of the doors.
const (
	headerTimeout   = 5 * time.Second
	requestTimeout  = 20 * time.Second // reading a request and writing an answer; a drain sets its own
	idleTimeout     = time.Minute
	shutdownTimeout = 2 * time.Second
	maxHeader       = 16 << 10
	maxConns        = 256 // each on the socket and the health port
)

// Server is the agent's three doors. Its listeners are open when NewServer
// returns; Run serves them.
type Server struct {
	o       Options
	log     *slog.Logger
	metrics *metrics

	socket net.Listener // nil: shut
	health net.Listener
	mesh   *meshListener
}

// NewServer opens the doors.
func NewServer(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Gatherer == nil {
		o.Gatherer = prometheus.NewRegistry()
	}
	s := &Server{o: o, log: o.Logger, metrics: newMetrics(o.Registerer)}
	if err := s.open(); err != nil {
		s.close()
		return nil, fmt.Errorf("open API: %w", err)
	}
	return s, nil
}

func (s *Server) open() error {
	if s.o.Socket != "" {
		l, err := listenSocket(s.o.Socket)
		if err != nil {
			return err
		}
		s.socket = limit(l, maxConns)
	}
	if s.o.Health != "" {
		l, err := net.Listen("tcp", s.o.Health)
		if err != nil {
			return fmt.Errorf("listen for health: %w", err)
		}
		s.health = limit(l, maxConns)
	}
	if s.o.Mesh != "" {
		l, err := listenMesh(s.o.Mesh, s.o.TLS, s.log, s.metrics)
		if err != nil {
			return err
		}
		s.mesh = l
	}
	return nil
}

func (s *Server) close() {
	for _, l := range []net.Listener{s.socket, s.health} {
		if l != nil {
			l.Close()
		}
	}
	if s.mesh != nil {
		s.mesh.close()
	}
}

// HealthAddr returns the address of the health port; nil if it is shut.
func (s *Server) HealthAddr() net.Addr {
	if s.health == nil {
		return nil
	}
	return s.health.Addr()
}

// MeshAddr returns the address of the mesh port; nil if it is shut.
func (s *Server) MeshAddr() net.Addr {
	if s.mesh == nil {
		return nil
	}
	return s.mesh.l.Addr()
}

// Raft returns the network on which raft talks through the mesh port. Until it
// has been called, raft connections are refused.
func (s *Server) Raft() *RaftNetwork { return s.mesh.raftNetwork() }

// Run serves until ctx ends, then lets requests under way finish for a moment.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	// Requests outlive ctx for as long as the shutdown waits for them.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, stop := errgroup.WithContext(ctx)
	serve := func(name string, l net.Listener, h http.Handler) {
		srv := &http.Server{
			Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
			IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
			BaseContext: func(net.Listener) context.Context { return work },
			ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		}
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", name, err)
			}
			return nil
		})
		g.Go(func() error {
			<-stop.Done()
			limit, done := context.WithTimeout(work, shutdownTimeout)
			defer done()
			if err := srv.Shutdown(limit); err != nil {
				srv.Close()
			}
			return nil
		})
	}
	if s.socket != nil {
		serve("socket", s.socket, s.routes("socket"))
	}
	if s.health != nil {
		serve("health", s.health, s.routes("health"))
	}
	if s.mesh != nil {
		serve("mesh", s.mesh.http, s.routes("mesh"))
		g.Go(func() error { return s.mesh.run(stop) })
	}
	g.Go(func() error { <-stop.Done(); return nil })
	return g.Wait()
}

type metrics struct {
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec // reason: busy, handshake, protocol, raft_full
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_api_requests_total", Help: "API requests by door, path and status."}, []string{"door", "path", "code"}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_api_refused_connections_total", Help: "Connections to the mesh port that were closed, by reason."}, []string{"reason"}),
	}
}

// limit bounds the connections of a listener that are open at one time; more
// wait in the system's queue.
func limit(l net.Listener, n int) net.Listener {
	return &limitListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

// listenSocket listens at path with mode 0600. A socket file that nobody
// answers at is left from a process that died, and is replaced.
func listenSocket(path string) (net.Listener, error) {
	if len(path) > 100 {
		return nil, fmt.Errorf("listen on socket %s: the path has %d bytes, at most 100 fit", path, len(path))
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on socket %s: there is a file that is no socket", path)
		}
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("listen on socket %s: another agent answers there", path)
		}
	}
	return bindSocket(path)
}
