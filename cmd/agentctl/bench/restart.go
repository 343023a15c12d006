package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"flymesh/cmd/agentctl/emulator"
)

// restartAll replaces every machine at once, as a deploy with the strategy
// "immediate" does, and tells how long it takes until the next epoch commits.
// Every voter is then a blank one.
func (m *mesh) restartAll(ctx context.Context) (time.Duration, error) {
	before, err := m.status(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := each(m.Machines(), func(x emulator.Machine) error { return m.update(ctx, x) }); err != nil {
		return 0, fmt.Errorf("update all machines: %w", err)
	}
	limit := 2 * time.Minute
	err = until(ctx, limit, "the next epoch", func(ctx context.Context) error {
		s, err := m.status(ctx)
		if err == nil && s.Epoch == before.Epoch {
			err = errors.New("the old leader still answers")
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	err = until(ctx, limit, "a commit", func(ctx context.Context) error {
		for _, x := range m.Machines() {
			if err = propose(ctx, x); err == nil {
				return nil
			}
		}
		return err
	})
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	return took, m.ready(ctx, limit)
}

// update gives a machine the config that it has, which stops it, wipes it and
// starts it again.
func (m *mesh) update(ctx context.Context, x emulator.Machine) error {
	path := "/v1/apps/" + x.App + "/machines/" + x.ID
	var machine struct {
		Config json.RawMessage `json:"config"`
	}
	if err := m.call(ctx, x, http.MethodGet, path, nil, &machine); err != nil {
		return err
	}
	return m.call(ctx, x, http.MethodPost, path, machine, nil)
}

func (m *mesh) call(ctx context.Context, x emulator.Machine, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, m.URL()+path, &body)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+m.Token(x.Service))
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: status %d: %.200s", method, path, resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}
