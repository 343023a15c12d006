package raftstore_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"flymesh/raftstore"
	"flymesh/raftstore/raftnet"
)

// plainNode is hashicorp/raft as it comes: its network transport at a plain
// address, a server ID that is new with each boot.
type plainNode struct {
	id    string
	host  *raftnet.Host
	log   *plainLog
	store *raft.InmemStore
	trans *raft.NetworkTransport
	raft  *raft.Raft
}

type plainLog struct {
	mu sync.Mutex
	l  []string
}

func (f *plainLog) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.l = append(f.l, string(l.Data))
	return nil
}
func (*plainLog) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }
func (*plainLog) Restore(io.ReadCloser) error         { return nil }
func (f *plainLog) has(s string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Contains(strings.Join(f.l, ","), s)
}

type plainStream struct{ *raftnet.Host }

type plainAddr string

func (plainAddr) Network() string    { return "mem" }
func (a plainAddr) String() string   { return string(a) }
func (s plainStream) Addr() net.Addr { return plainAddr(s.Host.Addr()) }
func (s plainStream) Dial(a raft.ServerAddress, d time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return s.Host.Dial(ctx, string(a))
}

func startPlain(t *testing.T, n *raftnet.Net, id, addr string, store *raft.InmemStore) *plainNode {
	t.Helper()
	return startOver(t, n, id, addr, store, func(t *raft.NetworkTransport) raft.Transport { return t })
}

// startOver starts a plain node over another transport than its own.
func startOver(t *testing.T, n *raftnet.Net, id, addr string, store *raft.InmemStore, over func(*raft.NetworkTransport) raft.Transport) *plainNode {
	t.Helper()
	p := &plainNode{id: id, host: n.Listen(addr), log: &plainLog{}, store: store}
	p.trans = raft.NewNetworkTransportWithLogger(plainStream{p.host}, 3, time.Second, hclog.NewNullLogger())
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = raft.ServerID(id), hclog.NewNullLogger()
	var err error
	if p.raft, err = raft.NewRaft(c, p.log, store, store, raft.NewInmemSnapshotStore(), over(p.trans)); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *plainNode) stop() {
	p.host.Close()
	p.raft.Shutdown().Error()
}

// TestBlankNodeOnPlainRaft shows the hazard that TestBlankNodeAtOldAddress
// holds against: with plain addresses a blank node at its predecessor's
// address votes for a node that lacks an acknowledged entry, and it is lost.
func TestBlankNodeOnPlainRaft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := raftnet.New(500 * time.Microsecond)
		nodes := map[string]*plainNode{}
		var conf raft.Configuration
		for _, id := range []string{"a", "b", "c"} {
			nodes[id] = startPlain(t, n, id+"-1", id, raft.NewInmemStore())
			conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(id + "-1"), Address: raft.ServerAddress(id)})
		}
		if err := nodes["a"].raft.BootstrapCluster(conf).Error(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		var leader, had, stale string
		for id, p := range nodes {
			switch {
			case p.raft.State() == raft.Leader:
				leader = id
			case had == "":
				had = id
			default:
				stale = id
			}
		}
		n.Isolate(stale, "a", "b", "c")
		if err := nodes[leader].raft.Apply([]byte("X"), time.Second).Error(); err != nil {
			t.Fatal(err)
		}
		n.HealAll()
		n.Isolate(leader, "a", "b", "c")
		nodes[had].stop()
		blank := startPlain(t, n, had+"-2", had, raft.NewInmemStore())
		time.Sleep(20 * time.Second)
		elected := nodes[stale].raft.State() == raft.Leader && nodes[stale].raft.Apply([]byte("Y"), time.Second).Error() == nil
		n.HealAll()
		time.Sleep(10 * time.Second)
		if !elected || nodes[stale].log.has("X") || !nodes[leader].log.has("Y") {
			t.Errorf("the hazard did not show: elected %v", elected)
		}
		blank.stop()
		nodes[leader].stop()
		nodes[stale].stop()
		time.Sleep(10 * time.Minute)
	})
}

// TestBlankNodeAtOldAddress is the same situation here: nobody is elected with
// the blank node's vote, and the entry survives until the old leader is back.
func TestBlankNodeAtOldAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Default)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		var had, stale *machine
		for _, m := range s.machines {
			switch {
			case m == l:
			case had == nil:
				had = m
			default:
				stale = m
			}
		}
		s.net.Isolate(stale.addr, "m1:7947", "m2:7947", "m3:7947")
		propose(t, l, 42)
		s.net.HealAll()
		s.net.Isolate(l.addr, "m1:7947", "m2:7947", "m3:7947")
		had.kill()
		had.start()
		for range 100 {
			time.Sleep(200 * time.Millisecond)
			if st := stale.up().Status(); st.Role == raftstore.Leader {
				t.Fatal("the stale follower was elected with a blank node's vote")
			}
		}
		s.net.HealAll()
		got := s.voters(3, time.Minute)
		if e, v := s.reg.Record().Epoch, value(got.up()); e != 1 || v != 42 {
			t.Errorf("epoch %d, register %d, want 1 and 42", e, v)
		}
		s.stopAll()
	})
}

// TestTwoVotersBlankWithinASecond: a majority of logs is gone. The survivor
// must not go on with them; the next epoch does, within 45 s.
func TestTwoVotersBlankWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Default)
		s.reg.Watch(s.justified)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		propose(t, l, 5)
		for _, m := range s.machines {
			if m != l {
				m.kill()
				time.Sleep(400 * time.Millisecond)
				m.start()
			}
		}
		begin := time.Now()
		for time.Since(begin) < 29*time.Second {
			time.Sleep(100 * time.Millisecond)
			for _, m := range s.machines {
				if st := m.up().Status(); time.Since(begin) > 2*time.Second && st.Role == raftstore.Leader {
					t.Fatalf("%s leads epoch %d", m.id, st.Epoch)
				}
			}
		}
		s.leader(16 * time.Second)
		if e := s.reg.Record().Epoch; e != 2 {
			t.Errorf("epoch %d, want 2", e)
		}
		s.voters(3, 10*time.Second)
		s.stopAll()
	})
}

// TestVoterThatNotAllKnow: the leader dies when one voter has the entry that
// made it a voter and the other lacks it. A majority lives, but on plain raft
// neither votes for the other.
func TestVoterThatNotAllKnow(t *testing.T) {
	plain := func(t *raft.NetworkTransport) raft.Transport { return t }
	for _, c := range []struct {
		name  string
		over  func(*raft.NetworkTransport) raft.Transport
		stand raft.ServerSuffrage // of the new voter as the other knows it
		want  bool
	}{
		{"plain raft", plain, raft.Nonvoter, false},
		{"as stand-by", raftstore.Transport, raft.Nonvoter, true},
		{"not at all", raftstore.Transport, raft.Staging, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := raftnet.New(500 * time.Microsecond)
				server := func(id string, s raft.ServerSuffrage) raft.Server {
					return raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id), Suffrage: s}
				}
				before := raft.Configuration{Servers: []raft.Server{server("a", raft.Voter), server("b", raft.Voter)}}
				if c.stand == raft.Nonvoter {
					before.Servers = append(before.Servers, server("c", c.stand))
				}
				after := raft.Configuration{Servers: []raft.Server{server("a", raft.Voter), server("b", raft.Voter), server("c", raft.Voter)}}
				var nodes []*plainNode
				for id, confs := range map[string][]raft.Configuration{"b": {before}, "c": {before, after}} {
					store := raft.NewInmemStore()
					if err := store.SetUint64([]byte("CurrentTerm"), 1); err != nil {
						t.Fatal(err)
					}
					for i, conf := range confs {
						if err := store.StoreLog(&raft.Log{Index: uint64(i + 1), Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf)}); err != nil {
							t.Fatal(err)
						}
					}
					nodes = append(nodes, startOver(t, n, id, id, store, c.over))
				}
				time.Sleep(time.Minute)
				leads := false
				for _, p := range nodes {
					leads = leads || p.raft.State() == raft.Leader
				}
				if leads != c.want {
					t.Errorf("after a minute somebody leads: %t, want %t", leads, c.want)
				}
				for _, p := range nodes {
					p.stop()
				}
			})
		})
	}
}

// TestForgottenVoter: a voter dies and gossip forgets it (autopilot would keep
// it for ever). It is removed at once on the API's proof, and after 30 s where
// the API takes it to run. Where the API is down it stays: the others need as
// many of them either way, and the record must not name a voter that is none
// and may live.
func TestForgottenVoter(t *testing.T) {
	for _, api := range []string{"knows", "is wrong", "is down"} {
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, 3, raftstore.Default)
			s.startAll()
			l := s.voters(3, 20*time.Second)
			for _, m := range s.machines {
				if m == l {
					continue
				}
				if api == "is wrong" {
					s.net.Isolate(m.addr, "m1:7947", "m2:7947", "m3:7947")
				} else {
					m.kill()
				}
				m.mu.Lock()
				m.boots = 0 // not in gossip any more
				m.mu.Unlock()
				break
			}
			gone := func(limit time.Duration) time.Duration {
				begin := time.Now()
				for len(l.up().Status().Voters) == 3 && time.Since(begin) < limit {
					time.Sleep(100 * time.Millisecond)
				}
				return time.Since(begin)
			}
			switch api {
			case "knows":
				if took := gone(time.Minute); took > 10*time.Second {
					t.Errorf("removed after %s", took)
				}
			case "is wrong":
				if took := gone(time.Minute); took < 29*time.Second || took > 40*time.Second {
					t.Errorf("removed after %s", took)
				}
			case "is down":
				l.arb.SetDown(true)
				if took := gone(time.Minute); took < time.Minute || l.up().Status().Role != raftstore.Leader {
					t.Errorf("removed without the record, after %s", took)
				}
				l.arb.SetDown(false)
				if took := gone(time.Minute); took > 10*time.Second {
					t.Errorf("removed %s after the API is back", took)
				}
			}
			s.stopAll()
		})
	}
}

// TestPreVoteIsKept: a voter that was cut off for long does not disturb the
// term when it returns, as it would without pre-vote.
func TestPreVoteIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Default)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		term := l.up().Status().Term
		for _, m := range s.machines {
			if m != l {
				s.net.Isolate(m.addr, "m1:7947", "m2:7947", "m3:7947")
				break
			}
		}
		time.Sleep(20 * time.Second)
		s.net.HealAll()
		time.Sleep(20 * time.Second)
		if st := l.up().Status(); st.Term != term || st.Role != raftstore.Leader {
			t.Errorf("term %d became %d, role %s", term, st.Term, st.Role)
		}
		s.stopAll()
	})
}

// TestModules: versions of the log stores that lose data or do not build.
func TestModules(t *testing.T) {
	b, err := os.ReadFile("../go.sum")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"hashicorp/raft-wal v0.4.0 ", "hashicorp/raft-wal v0.4.2 ", "hashicorp/raft-boltdb"} {
		if strings.Contains(string(b), bad) {
			t.Errorf("go.sum holds %s", bad)
		}
	}
}
