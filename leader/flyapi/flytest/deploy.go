package flytest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	fly "github.com/superfly/fly-go"
)

// Deploy is what `fly deploy` would be told.
type Deploy struct {
	Strategy string // rolling (default), bluegreen, immediate or canary
	// Config makes the new config of a machine from a copy of its old one;
	// nil: it stays. The deploy adds the old metadata and its own.
	Config func(old fly.MachineConfig) fly.MachineConfig
	// Release is the fly_release_id; empty: made up. The fly_release_version
	// is the highest of the app's machines plus one.
	Release string
	// MaxUnavailable is how many machines a rolling deploy has down at once: a
	// number, or below 1 a share of all. Default 0.33, at most 8.
	MaxUnavailable float64
	// Timeout is how long a machine may take to be started and healthy.
	// Default 5 m.
	Timeout time.Duration
}

// What flyctl holds on to while it deploys.
const (
	deployLease   = 13 // seconds
	deployRefresh = 4 * time.Second
	deployAtOnce  = 8
	leaseRetry    = 500 * time.Millisecond
	leasePatience = time.Minute
)

// DeployInfo is a deploy that was begun.
type DeployInfo struct {
	ID       int        `json:"id"`
	App      string     `json:"app"`
	Strategy string     `json:"strategy"`
	Release  int        `json:"release"` // fly_release_version; 0: not known yet
	Began    time.Time  `json:"began"`
	Ended    *time.Time `json:"ended"` // null: under way
	Error    string     `json:"error,omitempty"`
}

// deploys is the history of deploys.
type deploys struct {
	mu   sync.Mutex // guards list
	list []DeployInfo
}

// Deploys returns every deploy so far, oldest first.
func (s *Server) Deploys() []DeployInfo {
	s.deploys.mu.Lock()
	defer s.deploys.mu.Unlock()
	return slices.Clone(s.deploys.list)
}

// Deploy puts a new release on the machines of an app as flyctl does: under a
// lease of each (13 s, refreshed every 4 s), with merged metadata, by one of
// flyctl's strategies. It returns when the deploy has ended, and gives up its
// leases also when it fails, which leaves the app half deployed.
func (s *Server) Deploy(ctx context.Context, app string, d Deploy) error {
	id, err := s.beginDeploy(app, d)
	if err != nil {
		return err
	}
	return s.runDeploy(ctx, app, d, id)
}

// beginDeploy checks a deploy and enters it in the history.
func (s *Server) beginDeploy(app string, d Deploy) (id int, err error) {
	if !slices.Contains([]string{"", "rolling", "bluegreen", "immediate", "canary"}, d.Strategy) {
		return 0, fmt.Errorf("deploy app %s: strategy is %q, want rolling, bluegreen, immediate or canary", app, d.Strategy)
	}
	s.deploys.mu.Lock()
	defer s.deploys.mu.Unlock()
	id = len(s.deploys.list) + 1
	s.deploys.list = append(s.deploys.list, DeployInfo{ID: id, App: app, Strategy: cmp.Or(d.Strategy, "rolling"), Began: time.Now()})
	return id, nil
}

func (s *Server) runDeploy(ctx context.Context, app string, d Deploy, id int) (err error) {
	d.Strategy = cmp.Or(d.Strategy, "rolling")
	d.MaxUnavailable = cmp.Or(d.MaxUnavailable, 0.33)
	d.Timeout = cmp.Or(d.Timeout, 5*time.Minute)
	d.Release = cmp.Or(d.Release, s.ids.nonce())
	r := &deployment{Deploy: d, actor: actor{s, actorDeploy}, app: app, leases: make(map[string]string)}
	defer func() {
		s.deploys.mu.Lock()
		defer s.deploys.mu.Unlock()
		e, now := &s.deploys.list[id-1], time.Now()
		e.Release, e.Ended = r.release, &now
		if err != nil {
			err = fmt.Errorf("deploy app %s: %w", app, err)
			e.Error = err.Error()
		}
	}()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.fleet.ctx, stop)()
	ms, err := r.begin(ctx)
	if err != nil {
		return errors.Join(err, r.end())
	}
	var keeper sync.WaitGroup
	kept, enough := context.WithCancel(ctx)
	keeper.Go(func() { r.keep(kept, stop) })
	err = r.strategy(ctx, ms)
	enough()
	keeper.Wait()
	return errors.Join(err, r.end())
}

// deployment is a deploy under way.
type deployment struct {
	Deploy
	actor
	app     string
	release int

	mu     sync.Mutex // guards leases
	leases map[string]string
}

func (r *deployment) path(id string) string {
	return "/v1/apps/" + r.app + "/machines/" + id
}

func (r *deployment) nonce(id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leases[id]
}

// list returns the machines that flyctl manages.
func (r *deployment) list(ctx context.Context) ([]*fly.Machine, error) {
	var ms []*fly.Machine
	err := r.call(ctx, http.MethodGet, "/v1/apps/"+r.app+"/machines", "", nil, &ms)
	return slices.DeleteFunc(ms, func(m *fly.Machine) bool {
		c := m.GetConfig()
		return !m.IsActive() || c.Metadata[fly.MachineConfigMetadataKeyFlyPlatformVersion] != fly.MachineFlyPlatformVersion2 ||
			slices.Contains([]string{"fly_app_release_command", "fly_app_console", "fly_app_test_machine_command"}, groupOf(c))
	}), err
}

// begin leases every machine whose host is there, and returns all of them as
// they are then.
func (r *deployment) begin(ctx context.Context) ([]*fly.Machine, error) {
	ms, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	r.release = 1
	for _, m := range ms {
		v, _ := strconv.Atoi(m.GetConfig().Metadata[fly.MachineConfigMetadataKeyFlyReleaseVersion])
		r.release = max(r.release, v)
	}
	r.release++
	for _, m := range ms {
		if m.HostStatus != fly.HostStatusOk {
			continue
		}
		if err := r.lease(ctx, m.ID); err != nil {
			return nil, err
		}
	}
	return r.list(ctx)
}

// lease takes the lease of a machine, and waits where somebody else holds it.
func (r *deployment) lease(ctx context.Context, id string) error {
	end := time.Now().Add(leasePatience)
	for {
		var l leaseEnvelope
		err := r.call(ctx, http.MethodPost, fmt.Sprintf("%s/lease?ttl=%d", r.path(id), deployLease), r.nonce(id), nil, &l)
		if err == nil {
			r.mu.Lock()
			r.leases[id] = l.Data.Nonce
			r.mu.Unlock()
			return nil
		}
		if time.Now().After(end) || !r.again(ctx, err) {
			return fmt.Errorf("take lease of machine %s: %w", id, err)
		}
	}
}

// again waits a moment if the error may pass by itself.
func (r *deployment) again(ctx context.Context, err error) bool {
	var e *apiError
	if !errors.As(err, &e) || e.code != http.StatusConflict && e.code != http.StatusPreconditionFailed {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(leaseRetry):
		return true
	}
}

// keep refreshes the leases until ctx ends. A lost one ends the deploy.
func (r *deployment) keep(ctx context.Context, stop func()) {
	t := time.NewTicker(deployRefresh)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		r.mu.Lock()
		held := maps.Clone(r.leases)
		r.mu.Unlock()
		for id, nonce := range held {
			var l leaseEnvelope
			err := r.call(ctx, http.MethodPost, fmt.Sprintf("%s/lease?ttl=%d", r.path(id), deployLease), nonce, nil, &l)
			if err != nil && r.nonce(id) != "" && ctx.Err() == nil {
				r.s.log.Warn("deploy loses a lease", "machine", id, "error", err)
				stop()
				return
			}
		}
	}
}

// end gives up what leases are left.
func (r *deployment) end() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.s.fleet.ctx), time.Second)
	defer cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for id, nonce := range r.leases {
		err := r.call(ctx, http.MethodDelete, r.path(id)+"/lease", nonce, nil, nil)
		var e *apiError
		if errors.As(err, &e) && e.code == http.StatusNotFound {
			err = nil // it has run out, or the machine is gone
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// config is what a machine is to be configured with.
func (r *deployment) config(m *fly.Machine) (*fly.MachineConfig, error) {
	old := m.GetConfig()
	b, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	var c fly.MachineConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if r.Config != nil {
		c = r.Config(c)
	}
	out := &c
	for k, v := range old.Metadata {
		if _, ok := out.Metadata[k]; !ok {
			out = withMetadata(out, k, v)
		}
	}
	out = withMetadata(out, fly.MachineConfigMetadataKeyFlyReleaseVersion, strconv.Itoa(r.release))
	out = withMetadata(out, fly.MachineConfigMetadataKeyFlyReleaseId, r.Release)
	return withMetadata(out, fly.MachineConfigMetadataKeyFlyctlVersion, "0.3.999"), nil
}
