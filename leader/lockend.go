package leader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"flymesh/raftstore/state"
)

// overdue says whether a lock's holder is silent and nobody looks after it
// yet. From then on its token is not renewed any more.
func (k *locks) overdue(lock state.Lock) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	late := time.Since(k.heardOf(lock.Token)) > LockLease+LockMargin
	if k.busy[lock.Name] || !late && !k.ending[lock.Token] {
		return false
	}
	if late {
		k.ending[lock.Token] = true
	}
	k.busy[lock.Name] = true
	return true
}

func (k *locks) idle(lock string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.busy, lock)
}

// settle looks for a proof that a silent holder's work has ended, and frees the
// lock with it. Without one the holder's machine is stopped, if somebody waits
// for the lock and its policy is fenced.
func (k *locks) settle(ctx context.Context, lock state.Lock) {
	gone, why := k.end(ctx, lock)
	silent := k.silent(lock)
	switch {
	case ctx.Err() != nil:
		return
	case gone:
		k.free(ctx, lock, state.Ended, "its machine says that nothing of it runs any more")
		return
	case lock.Policy == state.Expiry && silent > longestLease:
		k.free(ctx, lock, state.Expired, fmt.Sprintf("silent for %s; %s", silent.Round(time.Second), why))
		return
	case lock.Policy == state.Expiry:
		k.say(lock.Name, fmt.Sprintf("the holder is silent for %s: %s", silent.Round(time.Second), why))
		return
	}
	m, err := k.l.Cloud.Get(ctx, lock.Holder.App, lock.Holder.Machine)
	switch {
	case ctx.Err() != nil:
		return
	case FaultOf(err) == Gone && err != nil, err == nil && halted(m.State):
		k.free(ctx, lock, state.Stopped, "the platform says that its machine does not run")
		return
	case err != nil:
		k.blocked(ctx, lock, fmt.Sprintf("%s, and the Machines API does not say whether its machine runs: %v", why, err))
		return
	}
	if !k.isWanted(lock.Name) {
		k.say(lock.Name, why+"; its machine is stopped when somebody asks for the lock")
		return
	}
	if err := k.fence(ctx, lock, m, why); err != nil && ctx.Err() == nil {
		k.blocked(ctx, lock, fmt.Sprintf("%s, and its machine cannot be stopped: %v", why, err))
	}
}

// halted says whether nothing runs on a machine in this state, nor wakes up
// again: a suspended one does.
func halted(s string) bool { return s == "stopped" || s == "destroyed" || s == "failed" }

// fence stops a silent holder's machine. What comes of it is seen by the next
// look.
func (k *locks) fence(ctx context.Context, lock state.Lock, m Machine, why string) error {
	if m.ID == k.l.Self {
		return errors.New("it leads the mesh")
	}
	k.mu.Lock()
	call, told := k.stops[lock.Token]
	k.mu.Unlock()
	switch waited := time.Since(call.at); {
	case m.State == "stopping":
		return nil
	case told && waited < stopAgain && waited > stopSoon:
		if call.err != nil {
			return fmt.Errorf("%w; it is %s", call.err, m.State)
		}
		return fmt.Errorf("it was told to stop %s ago and is %s", waited.Round(time.Second), m.State)
	case told && waited < stopAgain:
		return nil
	}
	if err := k.l.Store.MayStop(ctx, m.ID); err != nil {
		return err
	}
	if !told {
		note := &state.Note{Kind: "fence", Machine: m.ID, Reason: fmt.Sprintf(
			"lock %s is wanted, and its holder is silent for %s (%s): the machine is stopped before the lock is granted again",
			lock.Name, k.silent(lock).Round(time.Second), why)}
		if _, err := k.l.propose(ctx, k.term, state.Command{Note: note}); err != nil {
			return err
		}
	}
	if err := k.l.Store.Verify(ctx); err != nil {
		return err
	}
	k.l.log.Warn("stopping a silent holder's machine", "lock", lock.Name, "machine", m.ID, "token", lock.Token)
	err := k.l.Cloud.Stop(ctx, lock.Holder.App, m.ID, 0)
	if f := faultOf(err); f != "" && f != Unknown && f != Gone {
		return err
	}
	k.mu.Lock()
	k.stops[lock.Token] = stopCall{time.Now(), err}
	k.mu.Unlock()
	if !told { // else what came of the last try is what people want to know
		k.say(lock.Name, "its machine "+m.ID+" is being stopped")
	}
	return nil
}

func (k *locks) free(ctx context.Context, lock state.Lock, cause state.Cause, reason string) {
	_, err := k.l.propose(ctx, k.term, state.Command{Free: &state.Free{Lock: lock.Name, Token: lock.Token, Cause: cause, Reason: reason}})
	if err != nil && !errors.Is(err, state.ErrRejected) {
		k.l.log.Warn("free lock failed", "lock", lock.Name, "error", err)
		return
	}
	k.l.log.Info("lock freed", "lock", lock.Name, "token", lock.Token, "cause", string(cause), "reason", reason)
	k.say(lock.Name, "")
}

// blocked tells, once, why a wanted lock cannot be freed.
func (k *locks) blocked(ctx context.Context, lock state.Lock, why string) {
	k.say(lock.Name, why)
	k.mu.Lock()
	k.stuckAt[lock.Name] = time.Now()
	k.mu.Unlock()
	if !k.isWanted(lock.Name) || !k.cry(lock.Token) {
		return
	}
	k.l.log.Warn("lock cannot be freed", "lock", lock.Name, "machine", lock.Holder.Machine, "reason", why)
	note := &state.Note{Kind: "fence_blocked", Machine: lock.Holder.Machine, Reason: fmt.Sprintf(
		"lock %s is not granted: %s; a person may free it: agentctl unlock %s --force", lock.Name, why, lock.Name)}
	if _, err := k.l.propose(ctx, k.term, state.Command{Note: note}); err != nil {
		k.l.log.Warn("note failed", "error", err)
	}
}

// stuck says which locks are wanted and cannot be freed, and why; empty: none.
func (k *locks) stuck(st *state.State) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(st.Locks)) {
		if time.Since(k.stuckAt[name]) < stopAgain && time.Since(k.wanted[name]) < wantedFor {
			all = append(all, fmt.Sprintf("lock %s: %s", name, k.held[name]))
		}
	}
	if k.missing != "" && !st.Known(state.Fenced) && time.Since(k.began) > longestLease {
		all = append(all, "no fenced lock is granted, and no job runs: "+k.missing)
	}
	return strings.Join(all, "; ")
}

// say keeps why a lock is not free yet.
func (k *locks) say(lock, why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[lock] = why; why == "" {
		delete(k.held, lock)
	}
}

// cry reports whether people are to be told that a lock cannot be freed: once.
func (k *locks) cry(token string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.cried[token]
	k.cried[token] = true
	return !was
}

func (k *locks) silent(lock state.Lock) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Since(k.heardOf(lock.Token))
}

func (k *locks) isWanted(lock string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.wanted[lock]
	return ok && time.Since(at) < wantedFor
}

// rebuild takes in the locks that machines hold from before this epoch, whose
// leader has lost the state. No expiry lock is granted before every machine has
// answered, or is proven not to run, or the longest lease with all margins has
// passed; no fenced one without the proof, because a frozen machine outlasts
// any lease.
func (k *locks) rebuild(ctx context.Context) {
	asked := map[string]bool{}
	tick := time.NewTicker(lockTick)
	defer tick.Stop()
	for ; ctx.Err() == nil; k.await(ctx, tick.C) {
		st := k.l.Store.State()
		if st.Known(state.Fenced) {
			return
		}
		missing := k.unheard(ctx, asked)
		k.mu.Lock()
		k.missing = missing
		k.mu.Unlock()
		r := state.Rebuilt{Epoch: k.term.Epoch, Proven: missing == "", Reason: "every machine has said which locks it holds"}
		if missing != "" {
			r.Reason = fmt.Sprintf("the longest lease has passed (%s), but fenced locks wait: %s", longestLease, missing)
		}
		if missing != "" && (time.Since(k.began) <= longestLease || st.Known(state.Expiry)) || k.l.Store.Verify(ctx) != nil {
			continue
		}
		if _, err := k.l.propose(ctx, k.term, state.Command{Rebuilt: &r}); err != nil && ctx.Err() == nil {
			k.l.log.Warn("rebuild locks failed", "error", err)
		}
	}
}

func (k *locks) await(ctx context.Context, tick <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-tick:
	}
}

// unheard asks each machine that runs which locks it holds, and says which one
// has not answered.
func (k *locks) unheard(ctx context.Context, asked map[string]bool) (missing string) {
	for _, s := range k.l.Services {
		n, _ := k.l.listed.of(s.App)
		if n.err != nil || n.began.Before(k.began) {
			missing = "the machines of app " + s.App + " are not known"
			continue
		}
		for _, m := range k.l.machines(s) {
			if halted(m.State) || m.State == "created" || asked[m.ID] {
				continue
			}
			if err := k.ask(ctx, m.ID); err != nil {
				missing = fmt.Sprintf("machine %s (%s) does not say which locks it holds: %v", m.ID, m.State, err)
				continue
			}
			asked[m.ID] = true
		}
	}
	return missing
}

// ask takes in what one machine holds.
func (k *locks) ask(ctx context.Context, machine string) error {
	actx, cancel := context.WithTimeout(ctx, holderWait/2)
	defer cancel()
	held, err := k.l.Holders.Held(actx, machine, k.term.Epoch)
	if err != nil {
		return err
	}
	for _, lock := range held {
		if _, err := k.l.propose(ctx, k.term, state.Command{Adopt: &state.Adopt{Lock: lock}}); err != nil && !errors.Is(err, state.ErrRejected) {
			return err
		}
	}
	return nil
}
