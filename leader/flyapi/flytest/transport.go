package flytest

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"syscall"
)

// Transport returns a RoundTripper that serves every request in process,
// whatever its host, so that a client works without a socket and inside a
// bubble. After Close it fails like a refused connection.
func (s *Server) Transport() http.RoundTripper { return inProcess{s, s} }

type inProcess struct {
	s *Server
	h http.Handler
}

// RoundTrip runs the handler in a goroutine of its own and returns at its end
// or when the request's context ends, as a real connection would.
func (t inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		body, err = io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	t.s.mu.Lock()
	if t.s.closed {
		t.s.mu.Unlock()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	in := r.Clone(r.Context())
	in.Body = io.NopCloser(bytes.NewReader(body))
	in.Header = make(http.Header)
	for k, vs := range r.Header { // fly-go's keys are not canonical; a wire makes them so
		for _, v := range vs {
			in.Header.Add(k, v)
		}
	}
	in.RequestURI = r.URL.RequestURI()
	in.RemoteAddr = "in-process"
	w := &recorder{header: make(http.Header)}
	done := make(chan bool, 1)
	t.s.wg.Go(func() {
		answered := false
		defer func() {
			if err := recover(); err != nil && err != http.ErrAbortHandler {
				panic(err)
			}
			done <- answered
		}()
		t.h.ServeHTTP(w, in)
		answered = true
	})
	t.s.mu.Unlock()
	select {
	case answered := <-done:
		if !answered {
			return nil, io.EOF
		}
		return w.response(r), nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// recorder collects an answer.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
}

func (w *recorder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

func (w *recorder) response(r *http.Request) *http.Response {
	w.WriteHeader(http.StatusOK)
	return &http.Response{
		Status: http.StatusText(w.code), StatusCode: w.code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r,
	}
}
