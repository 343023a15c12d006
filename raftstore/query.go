package raftstore

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"flymesh/raftstore/epoch"
)

// sight is what a machine says of itself to whoever of the mesh asks.
type sight struct {
	Machine    string        `json:"machine"`
	App        string        `json:"app"`
	Server     string        `json:"server"` // server ID: the incarnation that is there now
	BootAt     time.Time     `json:"boot_at"`
	Eligible   bool          `json:"eligible"`
	Durable    bool          `json:"durable,omitempty"` // keeps its server ID over a restart
	Epoch      uint64        `json:"epoch"`             // newest known
	Cluster    string        `json:"cluster"`
	Member     bool          `json:"member"` // of that cluster
	Leading    bool          `json:"leading"`
	Leader     string        `json:"leader,omitempty"` // server ID that this member follows
	LeaderAddr string        `json:"leader_addr,omitempty"`
	LeaderAge  int64         `json:"leader_age_ms"` // since the leader was heard; -1: no leader
	Term       uint64        `json:"term"`
	Last       uint64        `json:"last"` // last log index
	Since      time.Time     `json:"since,omitzero"`
	Servers    []string      `json:"servers,omitempty"` // of the leader: every server ID in raft
	Voters     []VoterStatus `json:"voters,omitempty"`
}

const maxSight = 64 << 10

func (s *Store) sight() sight {
	e, cluster := s.known()
	self := s.o.Self
	v := sight{
		Machine: self.Machine, App: self.App, Server: s.selfNow().ID(), BootAt: self.BootAt,
		Eligible: self.Eligible, Durable: s.o.DataDir != "", Epoch: e, Cluster: cluster, LeaderAge: -1,
	}
	in := s.member()
	if in == nil {
		return v
	}
	v.Server, v.Member, v.Epoch, v.Cluster = in.server, true, in.epoch, in.cluster
	v.Term, v.Last = in.raft.CurrentTerm(), in.raft.LastIndex()
	if l := s.leading(); l != nil && l.in == in {
		v.Leading, v.Leader, v.LeaderAddr, v.LeaderAge, v.Since = true, in.server, self.Addr, 0, l.since
		for _, srv := range in.servers() {
			v.Servers = append(v.Servers, string(srv.ID))
		}
		v.Voters = l.control.voters()
	} else if addr, id := in.raft.LeaderWithID(); id != "" && string(id) != in.server {
		v.Leader, v.LeaderAddr = string(id), hostportOf(addr)
		v.LeaderAge = time.Since(in.raft.LastContact()).Milliseconds()
	}
	return v
}

// answer serves one query connection.
func (s *Store) answer(c net.Conn) {
	var q [1]byte
	for {
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(c, q[:]); err != nil || q[0] != kindQuery {
			return
		}
		b, err := json.Marshal(s.sight())
		if err != nil || len(b) > maxSight {
			s.log.Error("cannot answer a query", "error", err, "bytes", len(b))
			return
		}
		c.SetDeadline(time.Now().Add(handshakeTimeout))
		if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
			return
		}
	}
}

func exchange(c net.Conn) (sight, error) {
	var v sight
	if _, err := c.Write([]byte{kindQuery}); err != nil {
		return v, err
	}
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return v, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxSight {
		return v, fmt.Errorf("answer of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		return v, err
	}
	return decodeSight(b)
}

func decodeSight(b []byte) (sight, error) {
	var v sight
	if err := json.Unmarshal(b, &v); err != nil {
		return sight{}, fmt.Errorf("decode sight: %w", err)
	}
	if v.Machine == "" || machineOf(v.Server) != v.Machine {
		return sight{}, fmt.Errorf("decode sight: server %q of machine %q", v.Server, v.Machine)
	}
	return v, nil
}

// askTimeout bounds a query, dial included.
const askTimeout = 1500 * time.Millisecond

// maxAskers bounds the idle query connections.
const maxAskers = 64

// asker asks other machines for their sight and keeps the connections open.
type asker struct {
	dial func(context.Context, string) (net.Conn, error)
	mu   sync.Mutex
	idle map[string]net.Conn // nil after close
}

func newAsker(dial func(context.Context, string) (net.Conn, error)) *asker {
	return &asker{dial: dial, idle: map[string]net.Conn{}}
}

func (a *asker) ask(ctx context.Context, hostport string) (sight, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a.mu.Lock()
	c := a.idle[hostport]
	delete(a.idle, hostport)
	a.mu.Unlock()
	if c != nil {
		// An idle connection may have died with its machine: try a new one.
		if v, err := a.over(ctx, hostport, c); err == nil || ctx.Err() != nil {
			return v, err
		}
	}
	c, err := a.dial(ctx, hostport)
	if err != nil {
		return sight{}, fmt.Errorf("ask %s: %w", hostport, err)
	}
	return a.over(ctx, hostport, c)
}

func (a *asker) over(ctx context.Context, hostport string, c net.Conn) (sight, error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	v, err := exchange(c)
	if !stop() || err != nil {
		c.Close()
		if err == nil {
			err = ctx.Err()
		}
		return v, fmt.Errorf("ask %s: %w", hostport, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.idle[hostport]; old != nil || a.idle == nil || len(a.idle) >= maxAskers {
		c.Close()
	} else {
		a.idle[hostport] = c
	}
	return v, nil
}

func (a *asker) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.idle {
		c.Close()
	}
	a.idle = nil
}

// askAll asks several machines at once; the answers are by address.
func (s *Store) askAll(ctx context.Context, addrs []string) map[string]sight {
	type answer struct {
		addr string
		v    sight
		err  error
	}
	ch := make(chan answer, len(addrs))
	for _, addr := range addrs {
		go func() {
			v, err := s.asker.ask(ctx, addr)
			ch <- answer{addr, v, err}
		}()
	}
	m := map[string]sight{}
	for range addrs {
		if a := <-ch; a.err == nil {
			m[a.addr] = a.v
		}
	}
	return m
}

// fates gathers what proves the end of recorded voters. A machine's own word
// comes first: an answer of the same incarnation outweighs what the API says,
// an answer of another one is the strongest proof of its end.
func (s *Store) fates(ctx context.Context, voters []epoch.Voter) map[string]epoch.Fate {
	fates := map[string]epoch.Fate{}
	if s.o.Arbiter != nil {
		actx, cancel := context.WithTimeout(ctx, 2*s.o.ReadTimeout)
		m, err := s.o.Arbiter.Fates(actx, voters)
		cancel()
		if err != nil {
			s.log.Warn("cannot read the fates of voters", "error", err)
		}
		for id, f := range m {
			fates[id] = f
		}
	}
	peers := map[string]Peer{}
	var addrs []string
	for _, p := range s.o.Peers.Peers() {
		peers[p.Machine] = p
	}
	for _, v := range voters {
		p, ok := peers[v.Machine]
		if !ok {
			continue
		}
		addrs = append(addrs, p.Addr)
		if p.Alive && p.Boot != rootBoot(v.Boot) && p.BootAt.After(v.BootAt) {
			fates[v.Machine] = epoch.Rebooted
		}
	}
	said := map[string]sight{}
	for _, a := range s.askAll(ctx, addrs) {
		said[a.Machine] = a
	}
	self := s.selfNow()
	for _, v := range voters {
		now := self.ID()
		if v.Machine != self.Machine {
			a, ok := said[v.Machine]
			if !ok {
				continue
			}
			now = a.Server
		}
		fates[v.Machine] = epoch.Running
		if supersedes(now, v.ID()) {
			fates[v.Machine] = epoch.Replaced
		}
	}
	return fates
}

// supersedes reports whether a server ID that is in use now ends another of
// the same machine: another boot does, and a later life of the same boot.
func supersedes(now, was string) bool {
	if machineOf(now) != machineOf(was) {
		return false
	}
	nb, nl, _ := strings.Cut(bootOf(now), ".")
	wb, wl, _ := strings.Cut(bootOf(was), ".")
	if nb != wb {
		return true
	}
	n, _ := strconv.Atoi(nl)
	w, _ := strconv.Atoi(wl)
	return n > w
}
