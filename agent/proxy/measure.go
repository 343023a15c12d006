package proxy

import (
	"bufio"
	"fmt"
	"mime"
	"net"
	"net/http"
	"sync"
	"time"

	"flymesh/probes/report"
)

// measured is one request on its way.
type measured struct {
	http.ResponseWriter
	p     *Proxy
	begin time.Time

	status   int
	first    time.Duration // until the answer's header; of a stream that is its duration
	stream   bool          // the answer has no end of its own: events
	upgraded bool          // the connection is now a websocket or the like
	whole    bool          // the answer came to its end
}

// WriteHeader notes the status of the answer.
func (m *measured) WriteHeader(status int) {
	if m.status == 0 && status >= 200 {
		m.answered(status)
	}
	m.ResponseWriter.WriteHeader(status)
}

func (m *measured) answered(status int) {
	m.status, m.first = status, time.Since(m.begin)
	kind, _, _ := mime.ParseMediaType(m.Header().Get("Content-Type"))
	m.stream = kind == "text/event-stream"
}

// Write is WriteHeader(200) where none was.
func (m *measured) Write(b []byte) (int, error) {
	if m.status == 0 {
		m.answered(http.StatusOK)
	}
	return m.ResponseWriter.Write(b)
}

// Unwrap lets the reverse proxy flush what streams.
func (m *measured) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// Hijack hands the connection over: the request was answered by an upgrade,
// and what follows is no request. It ends when the client or the app ends it.
func (m *measured) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(m.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over connection: %w", err)
	}
	if !m.upgraded {
		m.upgraded = true
		m.first = time.Since(m.begin)
		m.p.inFlight.Add(-1)
		m.p.streams.Add(1)
	}
	return conn, rw, nil
}

// end counts the request, also when the copy of its answer was aborted (the
// reverse proxy then panics on purpose).
func (m *measured) end(r *http.Request) {
	took := time.Since(m.begin)
	switch {
	case m.upgraded:
		m.p.streams.Add(-1)
		m.p.tally.add(m.begin.Add(m.first), m.first, false)
		return
	case m.stream:
		took = m.first
	}
	m.p.inFlight.Add(-1)
	// A client that left before the end gave up: a timeout that the app never
	// sees. The end of a stream is not that.
	gaveUp := r.Context().Err() != nil
	m.p.tally.add(time.Now(), took, m.status >= 500 || m.status == statusGone || m.status == 0 || !m.stream && (gaveUp || !m.whole))
}

// slots are how many parts the window has.
const slots = 12

// tally counts the requests of a sliding window.
type tally struct {
	part time.Duration

	mu    sync.Mutex // guards parts
	parts [slots]part
}

// part is one twelfth of the window.
type part struct {
	n                  int64 // which one since the epoch
	requests, failures float64
	latency            *report.Sketch
}

func newTally(window time.Duration) *tally {
	if window <= 0 {
		window = time.Minute
	}
	return &tally{part: max(window/slots, time.Millisecond)}
}

func (t *tally) add(now time.Time, took time.Duration, failed bool) {
	n := now.UnixNano() / int64(t.part)
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &t.parts[n%slots]
	if p.n != n {
		*p = part{n: n, latency: report.NewSketch()}
	}
	p.requests++
	if failed {
		p.failures++
	}
	p.latency.Add(took.Seconds())
}

// read sums up the window that ends now.
func (t *tally) read(now time.Time) (requests, failures float64, latency *report.Sketch, err error) {
	n := now.UnixNano() / int64(t.part)
	latency = report.NewSketch()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.parts {
		p := &t.parts[i]
		if p.n <= n-slots || p.n > n {
			continue
		}
		requests += p.requests
		failures += p.failures
		if err := latency.Merge(p.latency); err != nil {
			return 0, 0, nil, err
		}
	}
	return requests, failures, latency, nil
}

// buffers lends the copies of bodies their memory.
type buffers struct{ pool sync.Pool }

func newBuffers() *buffers {
	return &buffers{pool: sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}
}

// Get lends one.
func (b *buffers) Get() []byte { return *b.pool.Get().(*[]byte) }

// Put takes it back.
func (b *buffers) Put(x []byte) { b.pool.Put(&x) }
