package flyapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"flymesh/leader"
	"flymesh/raftstore/epoch"
)

const (
	// anchors is on how many machines of the anchor app the record is kept, so
	// that a machine that is destroyed takes nothing with it.
	anchors = 3
	// holders is on how many more machines a record that is there is kept up to
	// date: whoever knows the anchors of a moment ago, before a deploy put
	// others in their place, reads the new record where it read the old one.
	holders = 3
	// anchorsKept is how long a list of the app is good for knowing them.
	anchorsKept = 30 * time.Second
	// directFor bounds the look at the anchors themselves.
	directFor = time.Second
)

// ErrSuperseded is wrapped by the error of a Write that would replace the
// record of another cluster of the same or a later epoch.
var ErrSuperseded = errors.New("another cluster is recorded")

// Arbiter keeps the epoch record in the metadata of the anchor app's machines.
// Its methods may be called from any goroutine.
//
// The record is a last-writer-wins register, and the metadata of one machine
// is all that the API changes at once. Of several records the highest epoch
// counts; of one epoch, which a race between two founders can leave, the
// greater cluster ID, so that everybody who sees both names the same; of one
// cluster, the newest.
type Arbiter struct {
	client *Client
	app    string
	log    *slog.Logger

	mu     sync.Mutex   // guards all below
	ids    []string     // anchors
	idsAt  time.Time    // when they were listed
	listed epoch.Record // what the newest listing said
}

// NewArbiter returns the arbiter of a mesh whose record is on the machines of
// anchorApp. It sees every listing of that app that the client gets, so it must
// be made before the client's first call.
func NewArbiter(client *Client, anchorApp string) *Arbiter {
	a := &Arbiter{client: client, app: anchorApp, log: client.log}
	client.arbiters = append(client.arbiters, a)
	return a
}

// Read returns the record, the zero Record if there is none. It asks the
// machines that hold it. Only where it does not know them from a listing of
// late, or one of them does not answer, it asks for the list of the app's
// machines, whatever their state, and fails if that cannot be had: listings
// are what the API allows least of.
func (a *Arbiter) Read(ctx context.Context) (epoch.Record, error) {
	a.mu.Lock()
	listed, ids, known := a.listed, a.ids, !a.idsAt.IsZero() && time.Since(a.idsAt) <= anchorsKept
	a.mu.Unlock()
	if known && len(ids) > 0 {
		if r, answered := a.direct(ctx, ids); answered == len(ids) && !r.Zero() {
			return newer(listed, r), nil
		}
	}
	listed, ids, err := a.list(ctx)
	if err != nil {
		return epoch.Record{}, fmt.Errorf("read epoch record: %w", err)
	}
	r, _ := a.direct(ctx, ids)
	return newer(listed, r), nil
}

// list asks for the app's machines: the record on them, and the anchors.
func (a *Arbiter) list(ctx context.Context) (epoch.Record, []string, error) {
	wire, err := a.client.list(ctx, a.app)
	if err != nil {
		return epoch.Record{}, nil, err
	}
	r, ids := a.took(wire)
	return r, ids, nil
}

// took learns from a listing: the record on its machines, and which to ask.
func (a *Arbiter) took(wire []wireMachine) (epoch.Record, []string) {
	var r epoch.Record
	ids := anchorsOf(a.app, wire)
	more := holders
	for _, w := range wire {
		cfg := w.GetConfig()
		if cfg == nil || cfg.Metadata[epoch.MetadataKey] == "" {
			continue
		}
		r = newer(r, a.parse(w.ID, cfg.Metadata[epoch.MetadataKey]))
		if more > 0 && w.IsActive() && hostOK(&w.Machine) && !slices.Contains(ids, w.ID) {
			ids = append(ids, w.ID)
			more--
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ids, a.idsAt, a.listed = ids, time.Now(), r
	return r, ids
}

// anchors returns the anchors and the record of a listing that is not too old.
func (a *Arbiter) anchors(ctx context.Context) (epoch.Record, []string, error) {
	a.mu.Lock()
	r, ids, ok := a.listed, a.ids, !a.idsAt.IsZero() && time.Since(a.idsAt) <= anchorsKept
	a.mu.Unlock()
	if !ok || len(ids) == 0 {
		var err error
		if r, ids, err = a.list(ctx); err != nil {
			return r, nil, err
		}
	}
	if len(ids) == 0 {
		return r, nil, fmt.Errorf("app %s has no machine", a.app)
	}
	return r, ids, nil
}

// forget makes the next call ask for the anchors anew.
func (a *Arbiter) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.idsAt = time.Time{}
}

// direct asks the anchors themselves and says how many answered in time.
func (a *Arbiter) direct(ctx context.Context, ids []string) (best epoch.Record, answered int) {
	ctx, cancel := context.WithTimeout(ctx, directFor)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards best and answered
	for _, id := range ids {
		wg.Go(func() {
			m, err := a.client.get(ctx, a.app, id)
			if err != nil {
				a.log.Debug("epoch record of one machine not readable", "machine", id, "error", err)
				return
			}
			cfg := m.GetConfig()
			if cfg == nil {
				return
			}
			r := a.parse(id, cfg.Metadata[epoch.MetadataKey])
			mu.Lock()
			defer mu.Unlock()
			best = newer(best, r)
			answered++
		})
	}
	wg.Wait()
	return best, answered
}

func (a *Arbiter) parse(id, text string) epoch.Record {
	if text == "" {
		return epoch.Record{}
	}
	var r epoch.Record
	if err := json.Unmarshal([]byte(text), &r); err != nil || r.Epoch == 0 || r.Cluster == "" {
		a.log.Warn("malformed epoch record skipped", "machine", id, "record", text)
		return epoch.Record{}
	}
	return r
}

// newer returns the record that counts.
func newer(a, b epoch.Record) epoch.Record {
	if c := cmp.Or(cmp.Compare(a.Epoch, b.Epoch), strings.Compare(a.Cluster, b.Cluster), a.At.Compare(b.At)); c < 0 {
		return b
	}
	return a
}

// anchorsOf returns the machines that keep the record: the first by ID of
// those that stay. Machines whose host does not answer come last, they cannot
// be written to. That two clients may so choose differently does no harm: the
// record counts on whatever machine it is.
func anchorsOf(app string, wire []wireMachine) []string {
	ms := make([]leader.Machine, 0, len(wire))
	for _, w := range wire {
		if m := toMachine(app, w); !m.Special && w.IsActive() && validName.MatchString(w.ID) {
			ms = append(ms, m)
		}
	}
	slices.SortFunc(ms, func(a, b leader.Machine) int {
		if a.HostOK != b.HostOK {
			if a.HostOK {
				return -1
			}
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	ids := make([]string, 0, anchors)
	for _, m := range ms[:min(len(ms), anchors)] {
		ids = append(ids, m.ID)
	}
	return ids
}

// Lease takes the API lease of the first anchor and returns what gives it
// back. It keeps founders from racing, no more: it ends by itself after ttl,
// whatever its holder is doing then. If somebody else holds it, the fault of
// the error is leader.Leased.
func (a *Arbiter) Lease(ctx context.Context, ttl time.Duration) (release func(context.Context) error, err error) {
	_, ids, err := a.anchors(ctx)
	if err != nil {
		return nil, fmt.Errorf("lease anchor: %w", err)
	}
	nonce, err := a.client.lease(ctx, a.app, ids[0], ttl, "flymesh founds an epoch")
	if err != nil {
		if leader.FaultOf(err) != leader.Leased {
			a.forget()
		}
		return nil, fmt.Errorf("lease anchor %s: %w", ids[0], err)
	}
	return func(ctx context.Context) error {
		if err := a.client.releaseLease(ctx, a.app, ids[0], nonce); err != nil {
			return fmt.Errorf("release lease of anchor %s: %w", ids[0], err)
		}
		return nil
	}, nil
}

// Write puts the record on the anchors and reads it back from them. It refuses
// to replace the record of another cluster unless that is of an earlier epoch,
// and moves At on where a clock that runs ahead has stamped the one before.
// One anchor is enough; those that could not be written are logged.
func (a *Arbiter) Write(ctx context.Context, r epoch.Record) error {
	if r.Zero() || r.Epoch == 0 {
		return errors.New("write epoch record: it names no cluster")
	}
	have, ids, err := a.anchors(ctx)
	if err != nil {
		return fmt.Errorf("write epoch record: %w", err)
	}
	now, answered := a.direct(ctx, ids)
	if answered == 0 {
		a.forget()
		return errors.New("write epoch record: no anchor can be read")
	}
	have = newer(have, now)
	if err := superseded(have, r); err != nil {
		return err
	}
	r = compact(r)
	if have.Cluster == r.Cluster && !r.At.After(have.At) {
		r.At = have.At.Add(time.Millisecond)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode epoch record: %w", err)
	}
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			errs[i] = a.client.machine(ctx, ActSetMetadata, a.app, id, func(ctx context.Context, c *appClient) error {
				return c.fly.SetMetadata(ctx, a.app, id, epoch.MetadataKey, string(text))
			})
			if errs[i] != nil {
				a.log.Warn("epoch record not written to an anchor", "machine", id, "epoch", r.Epoch, "error", errs[i])
			}
		})
	}
	wg.Wait()
	// What can be read says what is true, not what was answered.
	have, _ = a.direct(ctx, ids)
	if sameRecord(have, r) {
		return nil
	}
	a.forget()
	if err := superseded(have, r); err != nil {
		return err
	}
	return fmt.Errorf("write epoch record: it reads back as epoch %d of %q: %w", have.Epoch, have.Cluster, errors.Join(errs...))
}

// superseded fails if have stands in the way of r.
func superseded(have, r epoch.Record) error {
	if have.Epoch > r.Epoch || have.Epoch == r.Epoch && have.Cluster != r.Cluster {
		return fmt.Errorf("write epoch record %d of %s: epoch %d is of %s: %w", r.Epoch, r.Cluster, have.Epoch, have.Cluster, ErrSuperseded)
	}
	return nil
}

// compact rounds times to what is worth its bytes.
func compact(r epoch.Record) epoch.Record {
	short := func(v epoch.Voter) epoch.Voter {
		v.BootAt = v.BootAt.UTC().Truncate(time.Millisecond)
		return v
	}
	r.At = r.At.UTC().Truncate(time.Millisecond)
	r.Founder = short(r.Founder)
	r.Voters = slices.Clone(r.Voters)
	for i, v := range r.Voters {
		r.Voters[i] = short(v)
	}
	return r
}

func sameRecord(a, b epoch.Record) bool {
	return a.Epoch == b.Epoch && a.Cluster == b.Cluster && a.At.Equal(b.At) && sameVoter(a.Founder, b.Founder) &&
		slices.EqualFunc(a.Voters, b.Voters, sameVoter)
}

func sameVoter(a, b epoch.Voter) bool {
	same := a.BootAt.Equal(b.BootAt)
	a.BootAt, b.BootAt = time.Time{}, time.Time{}
	return same && a == b
}
