package api_test

import (
	"crypto/tls"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/api/apitest"
	"flymesh/raftstore/stranger/logtest"
)

// 3,000 tries of strangers at the mesh port, each host and kind of mistake told
// of once, leave neither goroutines nor memory behind, and members get in.
func TestFloodOfStrangers(t *testing.T) {
	m, log := apitest.New("n8n"), &logtest.Log{}
	d := serve(t, m.Agent("m1"), "m1", func(o *api.Options) { o.Logger = log.Logger() })
	m.Lead(d.agent, d.mesh)
	otherSecret := withProto(tlsOf(t, 1, "m2"), "flymesh-raft/1")
	otherSecret.InsecureSkipVerify = true
	other, err := secret(t, 0).TLS("other-mesh", "m2", "b", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other = withProto(other, "http/1.1")
	other.InsecureSkipVerify = true
	unknown := withProto(tlsOf(t, 0, "m2"), "h2", "http/0.9")
	r := rand.New(rand.NewPCG(1, 2))
	// try calls from one host, so that the log tells of each kind once.
	try := func(conf *tls.Config) {
		c, err := net.Dial("tcp", d.mesh)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if conf != nil {
			if s := tls.Client(c, conf); s.Handshake() == nil {
				s.Read(make([]byte, 1)) // the server's refusal comes after it
			}
			return
		}
		b := make([]byte, r.IntN(200))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if r.IntN(3) == 0 {
			b = []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		c.Write(b)
	}
	heap := func() uint64 {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	for range 200 {
		try(nil)
	}
	goroutines, memory := runtime.NumGoroutine(), heap()
	began := time.Now()
	for i := range 3000 {
		switch {
		case i%1000 == 0:
			try(otherSecret)
		case i%1000 == 1:
			try(other)
		case i%1000 == 2:
			try(unknown)
		default:
			try(nil)
		}
	}
	t.Logf("3,000 tries in %s", time.Since(began).Round(time.Millisecond))
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines+5; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines before, %d after", goroutines, runtime.NumGoroutine())
		}
	}
	if now := heap(); now > memory+4<<20 {
		t.Errorf("%d bytes in use before, %d after", memory, now)
	}
	told := strings.Split(strings.TrimSpace(log.String()), "\n")
	t.Logf("%d lines:\n%s", len(told), strings.Join(told, "\n"))
	if len(told) > 3 || !strings.Contains(told[0], "msg=refused remote=127.0.0.1:") || !strings.Contains(told[0], "reason=") {
		t.Errorf("want one line for each kind (handshake, protocol), at most a sum")
	}
	if _, err := api.NewMeshClient(d.mesh, tlsOf(t, 0, "m2")).Status(t.Context()); err != nil {
		t.Errorf("a member: %v", err)
	}
}
