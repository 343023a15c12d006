package api

import (
	"context"
	"net/http"
	"time"

	"flymesh/leader"
)

// Paths of jobs.
const (
	PathJobs     = "/v1/jobs"       // GET -> []leader.JobView
	PathJobRun   = "/v1/jobs/run"   // POST JobRequest -> Accepted
	PathJobPause = "/v1/jobs/pause" // POST JobRequest -> Accepted; for 0: resume
	PathJobStart = "/v1/jobs/start" // POST leader.JobStart, by the primary itself (mesh port only)
)

// JobRequest is what a person asks of a job.
type JobRequest struct {
	Job    string            `json:"job"`
	Args   map[string]string `json:"args,omitempty"` // run
	For    time.Duration     `json:"for,omitempty"`  // pause
	Reason string            `json:"reason"`
	By     string            `json:"by"`
}

// JobBackend is what the job handlers need of the agent.
type JobBackend interface {
	StartJob(ctx context.Context, r leader.JobStart) error

	// The rest is answered by the leader alone.
	Jobs(ctx context.Context) ([]leader.JobView, error)
	RunJob(ctx context.Context, r JobRequest) (Accepted, error)
	PauseJob(ctx context.Context, r JobRequest) (Accepted, error)
}

// jobRoutes adds the handlers of jobs to a door.
func (s *Server) jobRoutes(door string, handle func(method, path string, h http.HandlerFunc)) {
	b := s.o.Jobs
	if b == nil {
		return
	}
	handle("GET", PathJobs, s.leading(maxBody, func(*http.Request, []byte) (work, error) {
		return func(ctx context.Context) (any, error) { return b.Jobs(ctx) }, nil
	}))
	for path, do := range map[string]func(context.Context, JobRequest) (Accepted, error){PathJobRun: b.RunJob, PathJobPause: b.PauseJob} {
		handle("POST", path, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
			var q JobRequest
			err := decodeStrict(body, &q)
			if err == nil && q.Job == "" {
				err = badRequest("job is missing: the name of one in mesh.toml")
			}
			if err == nil {
				err = checkTexts(q.Job, q.Reason, &q.By)
			}
			return func(ctx context.Context) (any, error) { return do(ctx, q) }, err
		}))
	}
	if door == "mesh" {
		handle("POST", PathJobStart, local(s, func(ctx context.Context, q leader.JobStart) (any, error) {
			return struct{}{}, b.StartJob(ctx, q)
		}))
	}
}

// Jobs lists the jobs.
func (c *Client) Jobs(ctx context.Context) ([]leader.JobView, error) {
	return get[[]leader.JobView](ctx, c, PathJobs)
}

// RunJob runs a job now.
func (c *Client) RunJob(ctx context.Context, r JobRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathJobRun, r)
}

// PauseJob keeps a job from running for a while; for 0 ends that.
func (c *Client) PauseJob(ctx context.Context, r JobRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathJobPause, r)
}

// StartJob has a machine begin a run.
func (c *Client) StartJob(ctx context.Context, r leader.JobStart) error {
	_, err := post[struct{}](ctx, c, PathJobStart, r)
	return err
}
