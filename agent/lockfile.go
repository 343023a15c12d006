package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"flymesh/agent/process"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

// openLocks reads what an earlier life of the agent left, and ends work that
// nobody keeps.
func openLocks(self state.Holder, socket string, log *slog.Logger, ask func(context.Context, leader.LockRequest) (leader.LockAnswer, error)) (*lockKeeper, error) {
	k := &lockKeeper{ask: ask, self: self, socket: socket, dir: socket + ".locks", log: log, begun: make(chan struct{}, 1), sessions: map[string]*session{}, ends: map[string]func() (bool, string){}}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open locks: %w", err)
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return nil, fmt.Errorf("open locks: %w", err)
	}
	known := map[string]bool{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(k.dir, e.Name()))
		s := &session{}
		if err == nil {
			err = json.Unmarshal(b, s)
		}
		if err != nil || s.Session == "" {
			_ = os.Remove(filepath.Join(k.dir, e.Name())) // half-written: it was granted nothing
			continue
		}
		s.since, s.deadline = time.Now(), time.Now().Add(leader.LockLease)
		k.begin(s)
		known[s.Token] = true
	}
	for token, pids := range process.Marked(socket) {
		if !known[token] {
			log.Warn("ending work of a lock that nobody keeps", "token", token, "processes", len(pids))
			k.mark(token).Kill()
		}
	}
	return k, nil
}

// keep writes a session's file. The caller holds mu.
func (k *lockKeeper) keep(s *session) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("keep session: %w", err)
	}
	name := k.file(s.Session)
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return fmt.Errorf("keep session: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("keep session: %w", err)
	}
	return nil
}

// drop forgets a session.
func (k *lockKeeper) drop(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forget(id)
}

// forget is drop for a caller that holds mu.
func (k *lockKeeper) forget(id string) {
	delete(k.sessions, id)
	_ = os.Remove(k.file(id)) // one that stays is found to be over by the next life
}

// mark is how the work under a token is known.
func (k *lockKeeper) mark(token string) process.Mark {
	return process.Mark{Socket: k.socket, Token: token}
}

func (k *lockKeeper) file(id string) string {
	return filepath.Join(k.dir, strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '_'
	}, id))
}

func (k *lockKeeper) byToken(token string) *session {
	for _, s := range k.sessions {
		if s.Token == token {
			return s
		}
	}
	return nil
}
