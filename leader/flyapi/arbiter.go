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

// anchors is on how many machines of the anchor app the record is kept, so
// that a machine that is destroyed takes nothing with it.
const anchors = 3

// ErrSuperseded is wrapped by the error of a Write that would replace the
// record of another cluster of the same or a later epoch.
var ErrSuperseded = errors.New("another cluster is recorded")

// Arbiter keeps the epoch record in the metadata of the anchor app's machines.
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
}

// NewArbiter returns the arbiter of a mesh whose record is on the machines of
// anchorApp.
func NewArbiter(client *Client, anchorApp string) *Arbiter {
	return &Arbiter{client: client, app: anchorApp, log: client.log}
}

// Read returns the record, the zero Record if there is none. It asks for the
// list of the anchor app's machines, whatever their state, and, because a
// listing may be behind, for the metadata of the anchors themselves. It fails
// only if the list cannot be had.
func (a *Arbiter) Read(ctx context.Context) (epoch.Record, error) {
	r, _, err := a.read(ctx)
	return r, err
}

func (a *Arbiter) read(ctx context.Context) (epoch.Record, []string, error) {
	wire, err := a.client.list(ctx, a.app)
	if err != nil {
		return epoch.Record{}, nil, fmt.Errorf("read epoch record: %w", err)
	}
	ids := anchorsOf(a.app, wire)
	direct := make([]epoch.Record, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { direct[i] = a.readOne(ctx, id) })
	}
	wg.Wait()
	var best epoch.Record
	for _, w := range wire {
		if cfg := w.GetConfig(); cfg != nil {
			best = newer(best, a.parse(w.ID, cfg.Metadata[epoch.MetadataKey]))
		}
	}
	for _, r := range direct {
		best = newer(best, r)
	}
	return best, ids, nil
}

// readOne asks for the record on one machine; what cannot be read is zero.
func (a *Arbiter) readOne(ctx context.Context, id string) epoch.Record {
	var meta map[string]string
	err := a.client.machine(ctx, ActGetMetadata, a.app, id, func(ctx context.Context, c *appClient) (err error) {
		meta, err = c.fly.GetMetadata(ctx, a.app, id)
		return err
	})
	if err != nil {
		a.log.Debug("epoch record of one machine not readable", "machine", id, "error", err)
		return epoch.Record{}
	}
	return a.parse(id, meta[epoch.MetadataKey])
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
	wire, err := a.client.list(ctx, a.app)
	if err != nil {
		return nil, fmt.Errorf("lease anchor: %w", err)
	}
	ids := anchorsOf(a.app, wire)
	if len(ids) == 0 {
		return nil, fmt.Errorf("lease anchor: app %s has no machine", a.app)
	}
	nonce, err := a.client.lease(ctx, a.app, ids[0], ttl, "flymesh founds an epoch")
	if err != nil {
		return nil, fmt.Errorf("lease anchor %s: %w", ids[0], err)
	}
	return func(ctx context.Context) error {
		if err := a.client.releaseLease(ctx, a.app, ids[0], nonce); err != nil {
			return fmt.Errorf("release lease of anchor %s: %w", ids[0], err)
		}
		return nil
	}, nil
}

// Write puts the record on the anchors and reads it back. It refuses to
// replace the record of another cluster unless that is of an earlier epoch.
// One anchor is enough; those that could not be written are logged.
func (a *Arbiter) Write(ctx context.Context, r epoch.Record) error {
	if r.Epoch == 0 || r.Cluster == "" {
		return errors.New("write epoch record: it names no cluster")
	}
	r = compact(r)
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode epoch record: %w", err)
	}
	have, ids, err := a.read(ctx)
	if err != nil {
		return err
	}
	if err := superseded(have, r); err != nil {
		return err
	}
	if len(ids) == 0 {
		return fmt.Errorf("write epoch record: app %s has no machine", a.app)
	}
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			errs[i] = a.client.machine(ctx, ActSetMetadata, a.app, id, func(ctx context.Context, c *appClient) error {
				return c.fly.SetMetadata(ctx, a.app, id, epoch.MetadataKey, string(text))
			})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			a.log.Warn("epoch record not written to an anchor", "machine", ids[i], "epoch", r.Epoch, "error", err)
		}
	}
	// What was written says what is true, not what was answered.
	have, _, err = a.read(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("read back: %w", errors.Join(append(errs, err)...))
	case sameRecord(have, r):
		return nil
	case have.Cluster == r.Cluster && have.At.After(r.At):
		return fmt.Errorf("write epoch record: a later one of the same cluster is there: %w", ErrSuperseded)
	}
	if err := superseded(have, r); err != nil {
		return err
	}
	return fmt.Errorf("write epoch record: read back epoch %d of cluster %q: %w", have.Epoch, have.Cluster, errors.Join(errs...))
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
