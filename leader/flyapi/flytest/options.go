package flytest

import (
	"log/slog"
	"time"
)

// Options configure a Server. The zero value is a usable emulator with
// in-memory machines, short delays, rate limits on and no token check.
type Options struct {
	Launcher Launcher                     // what a machine is; nil: a Memory without hooks
	Timing   Timing                       // zero fields have the defaults of DefaultTiming
	Apps     []string                     // apps that exist from the start; Seed, Tokens and POST /v1/apps add more
	Tokens   map[string]string            // app -> token that may use it; nil: tokens are not checked
	Secrets  map[string]map[string]string // app -> environment that its machines get at boot
	Regions  []string                     // default fra, ams, iad; the first is where machines go by default
	NoLimits bool                         // switch the rate limiter off
	Proxy    Checks                       // health checks that gate the proxy's routes
	Seed     uint64                       // of IDs and chances; 0: unpredictable
	Watch    func(Exchange)               // nil, or told each request of the API with its answer; from many goroutines
	Log      *slog.Logger                 // nil: silent
}

// Timing is how long things take. A negative field means no time at all.
type Timing struct {
	Create  time.Duration // created until starting (or stopped): the image pull
	Start   time.Duration // starting until the launcher is asked
	Resume  time.Duration // starting until a suspended machine runs again
	Stop    time.Duration // stopping until the signal is sent
	Suspend time.Duration
	Update  time.Duration // replacing until the old version is stopped
	Destroy time.Duration // destroying until destroyed
	Forget  time.Duration // destroyed until 404
	Settle  time.Duration // after a stop: start is refused with "machine still active"
	Restart time.Duration // exit until the restart policy starts the machine again
	ListLag time.Duration // age of what a listing without the affinity cookie shows; default none
}

// DefaultTiming returns delays that keep every state visible but let a test
// or a demo be quick.
func DefaultTiming() Timing {
	return Timing{
		Create:  100 * time.Millisecond,
		Start:   50 * time.Millisecond,
		Resume:  20 * time.Millisecond,
		Stop:    20 * time.Millisecond,
		Suspend: 20 * time.Millisecond,
		Update:  50 * time.Millisecond,
		Destroy: 50 * time.Millisecond,
		Forget:  200 * time.Millisecond,
		Settle:  50 * time.Millisecond,
		Restart: 500 * time.Millisecond,
	}
}

// FlyTiming returns delays as field reports have them.
func FlyTiming() Timing {
	return Timing{
		Create:  7 * time.Second,
		Start:   1500 * time.Millisecond,
		Resume:  300 * time.Millisecond,
		Stop:    200 * time.Millisecond,
		Suspend: time.Second,
		Update:  3500 * time.Millisecond,
		Destroy: 2 * time.Second,
		Forget:  5 * time.Second,
		Settle:  2 * time.Second,
		Restart: 2 * time.Second,
		ListLag: time.Second,
	}
}

func (t Timing) withDefaults() Timing {
	d := DefaultTiming()
	for _, f := range []struct{ have, def *time.Duration }{
		{&t.Create, &d.Create}, {&t.Start, &d.Start}, {&t.Resume, &d.Resume}, {&t.Stop, &d.Stop},
		{&t.Suspend, &d.Suspend}, {&t.Update, &d.Update}, {&t.Destroy, &d.Destroy}, {&t.Forget, &d.Forget},
		{&t.Settle, &d.Settle}, {&t.Restart, &d.Restart}, {&t.ListLag, &d.ListLag},
	} {
		switch {
		case *f.have == 0:
			*f.have = *f.def
		case *f.have < 0:
			*f.have = 0
		}
	}
	return t
}

// Checks are the health checks of the proxy: GET http://<private_ip>:Port Path.
type Checks struct {
	Port    int           // default 9470
	Path    string        // default /health
	Every   time.Duration // default 250 ms
	Timeout time.Duration // default 2 s
}

func (c Checks) withDefaults() Checks {
	if c.Port == 0 {
		c.Port = 9470
	}
	if c.Path == "" {
		c.Path = "/health"
	}
	if c.Every <= 0 {
		c.Every = 250 * time.Millisecond
	}
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Second
	}
	return c
}

func (o Options) withDefaults() Options {
	o.Timing = o.Timing.withDefaults()
	o.Proxy = o.Proxy.withDefaults()
	if o.Launcher == nil {
		o.Launcher = &Memory{}
	}
	if len(o.Regions) == 0 {
		o.Regions = []string{"fra", "ams", "iad"}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
