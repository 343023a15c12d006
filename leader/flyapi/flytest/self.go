package flytest

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// selfAPI answers at a machine's /.fly/api: the Machines API without a token,
// for the machine's own app alone, and tokens that say which machine it is.
// Whether Fly permits as much there beyond the machine itself is not known.
type selfAPI struct {
	s       *Server
	machine string
	app     string
}

// ServeHTTP answers a request of the machine.
func (a selfAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.s.serve(w, r, caller{self: &a})
}

// authorize refuses what is not of the machine's app.
func (a selfAPI) authorize(c *call) error {
	if c.app != a.app && (c.app != "" || c.route.method != http.MethodGet) {
		return failf(http.StatusForbidden, "unauthorized: machine %s is of app %s", a.machine, a.app)
	}
	return nil
}

// listenSelf serves a handler on a unix socket until the returned func is called.
func listenSelf(path string, h http.Handler, log *slog.Logger) (stop func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err // of the boot before, where the root filesystem is kept
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) }) // it ends when it is closed
	return func() {
		srv.Close()
		wg.Wait()
	}, nil
}

// SelfTransport returns a RoundTripper that is a machine's /.fly/api, in process.
func (s *Server) SelfTransport(id string) (http.RoundTripper, error) {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	m := s.fleet.byID(id)
	if m == nil {
		return nil, fmt.Errorf("open /.fly/api of machine %s: %w", id, notFound("machine not found"))
	}
	return inProcess{s, selfAPI{s, m.id, m.app}}, nil
}
