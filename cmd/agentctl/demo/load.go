package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"
)

// Load sends one kind of request at a set rate, whether or not the answers
// come (open loop). A latency counts from the moment when the request was due,
// not from when it could be sent, so a slow server cannot hide behind a sender
// that waits for it. Safe for use from many goroutines.
type Load struct {
	o      LoadOptions
	client *http.Client
	rng    *rand.Rand    // of the goroutine that runs Run
	rate   chan float64  // newest rate, requests a second
	slots  chan struct{} // one for each request under way

	mu       sync.Mutex
	requests []Request // guarded by mu; in the order in which they ended
}

// LoadOptions says what is sent. All fields but Body are needed.
type LoadOptions struct {
	URL         string
	Method      string
	Body        string
	Timeout     time.Duration // from when a request was due until it counts as failed
	MaxInFlight int           // requests at once, over which new ones are dropped
	Seed        uint64        // of the jitter
}

// Request is the fate of one request.
type Request struct {
	Due     time.Time
	Latency time.Duration
	Outcome string // the HTTP status, or timeout | refused | cut | dropped
}

// failed says whether the client got no good answer.
func (r Request) failed() bool { return !strings.HasPrefix(r.Outcome, "2") }

// The outcomes that are no HTTP status.
const (
	timedOut = "timeout"
	refused  = "refused" // no connection
	cut      = "cut"     // the connection ended before the answer
	dropped  = "dropped" // not sent: MaxInFlight were under way
)

// Figures sums up requests.
type Figures struct {
	Count    int            `json:"requests"`
	Failed   int            `json:"failed"`
	Outcomes map[string]int `json:"outcomes"`
	P50      time.Duration  `json:"-"`
	P95      time.Duration  `json:"-"` // exact, failed requests with the time that they took
	Max      time.Duration  `json:"-"`
}

// NewLoad returns a load of rate 0.
func NewLoad(o LoadOptions) *Load {
	return &Load{
		o: o,
		client: &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: o.MaxInFlight, IdleConnTimeout: 30 * time.Second,
		}},
		rng:   rand.New(rand.NewPCG(o.Seed, 0x6d657368)),
		rate:  make(chan float64, 1),
		slots: make(chan struct{}, o.MaxInFlight),
	}
}

// SetRate changes the rate to perSecond at once; 0 stops sending.
func (l *Load) SetRate(perSecond float64) {
	for {
		select {
		case l.rate <- perSecond:
			return
		case <-l.rate: // takes back one that Run has not seen
		}
	}
}

// Run sends until ctx ends and returns when every request has its fate.
func (l *Load) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer l.client.CloseIdleConnections()
	defer wg.Wait()
	rate, next := 0.0, time.Time{}
	for {
		var due <-chan time.Time
		if rate > 0 {
			due = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case rate = <-l.rate:
			next = time.Now()
			if rate > 0 {
				next = next.Add(l.gap(rate))
			}
			continue
		case <-due:
		}
		select {
		case l.slots <- struct{}{}:
			due := next
			wg.Go(func() {
				l.keep(l.send(ctx, due))
				<-l.slots
			})
		default:
			l.keep(Request{Due: next, Latency: l.o.Timeout, Outcome: dropped})
		}
		// From when it was due, not from now: a late sender catches up.
		next = next.Add(l.gap(rate))
	}
}

// gap is the time to the next request: the mean gap, jittered by half of it
// either way, so that requests do not march in step with a scrape or a quota.
func (l *Load) gap(rate float64) time.Duration {
	return time.Duration((0.5 + l.rng.Float64()) / rate * float64(time.Second))
}

func (l *Load) send(ctx context.Context, due time.Time) Request {
	req := Request{Due: due}
	ctx, cancel := context.WithDeadline(ctx, due.Add(l.o.Timeout))
	defer cancel()
	connected := false
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }})
	r, err := http.NewRequestWithContext(ctx, l.o.Method, l.o.URL, strings.NewReader(l.o.Body))
	if err == nil {
		var res *http.Response
		if res, err = l.client.Do(r); err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			req.Outcome = fmt.Sprint(res.StatusCode)
		}
	}
	req.Latency = time.Since(due)
	var ne net.Error
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout():
		req.Outcome = timedOut
	case errors.Is(err, context.Canceled):
		req.Outcome = "" // the run is over: no fate of the server's making
	case connected:
		req.Outcome = cut
	default:
		req.Outcome = refused
	}
	return req
}

func (l *Load) keep(r Request) {
	if r.Outcome == "" {
		return
	}
	// A demo that is left running must not grow for ever.
	const most = 200_000
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.requests) >= most {
		l.requests = slices.Delete(l.requests, 0, most/2)
	}
	l.requests = append(l.requests, r)
}

// Between sums up the requests that ended (were answered or given up) from one
// moment to before another.
func (l *Load) Between(from, to time.Time) Figures {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := Figures{Outcomes: map[string]int{}}
	var all []time.Duration
	for _, r := range l.requests {
		if end := r.Due.Add(r.Latency); end.Before(from) || !end.Before(to) {
			continue
		}
		f.Count++
		f.Outcomes[r.Outcome]++
		if r.failed() {
			f.Failed++
		}
		all = append(all, r.Latency)
	}
	if len(all) == 0 {
		return f
	}
	slices.Sort(all)
	at := func(q float64) time.Duration { return all[min(len(all)-1, int(q*float64(len(all))))] }
	f.P50, f.P95, f.Max = at(0.5), at(0.95), all[len(all)-1]
	return f
}
