package api_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/api/apitest"
	"flymesh/agent/identity"
)

// refused says whether a server closes a TLS connection without an answer.
func refused(t *testing.T, addr string, conf *tls.Config) bool {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, conf)
	if err != nil {
		return true
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
	b := make([]byte, 1)
	n, err := c.Read(b)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the server neither answers nor closes")
	}
	return n == 0
}

func TestMeshPortLetsNoStrangerIn(t *testing.T) {
	m := apitest.New("n8n")
	d := serve(t, m.Agent("m1"), "m1")
	m.Lead(d.agent, d.mesh)
	good := withProto(tlsOf(t, 0, "m2"), "http/1.1")
	if refused(t, d.mesh, good) {
		t.Fatal("a member is refused")
	}
	noCert := good.Clone()
	noCert.Certificates, noCert.InsecureSkipVerify = nil, true
	otherSecret := withProto(tlsOf(t, 1, "m2"), "http/1.1")
	otherSecret.InsecureSkipVerify = true
	other, err := secret(t, 0).TLS("other-mesh", "m2", "b", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other = withProto(other, "http/1.1")
	other.InsecureSkipVerify = true
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, conf := range map[string]*tls.Config{
		"no certificate": noCert, "another secret": otherSecret, "another mesh": other, "TLS 1.2": old,
		"no protocol": withProto(good), "an unknown protocol": withProto(good, "h2"),
		"raft, which is not served": withProto(good, "flymesh-raft/1"),
	} {
		if !refused(t, d.mesh, conf) {
			t.Errorf("%s: let in", name)
		}
	}
	// And the client trusts no stranger either.
	if _, err := api.NewMeshClient(d.mesh, tlsOf(t, 1, "m2")).Status(t.Context()); err == nil {
		t.Error("a client of another secret talks to the server")
	}
	if _, err := api.NewServer(api.Options{Backend: d.agent, Mesh: "127.0.0.1:0", TLS: &tls.Config{}}); err == nil {
		t.Error("a server that verifies nobody was opened")
	}
}

// Raft and HTTP share the port, and one does not end with the other.
func TestRaftSharesThePort(t *testing.T) {
	m := apitest.New("n8n")
	a, b := serve(t, m.Agent("ma"), "ma"), serve(t, m.Agent("mb"), "mb")
	m.Lead(a.agent, a.mesh)
	ra, rb := a.Raft(), b.Raft()
	if ra.Addr() != a.mesh {
		t.Errorf("raft's address is %s, want %s", ra.Addr(), a.mesh)
	}
	go func() {
		for {
			c, err := ra.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	c, err := rb.Dial(t.Context(), ra.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := strings.Repeat("entry", 10000)
	go io.WriteString(c, want)
	got := make([]byte, len(want))
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("echo: %v", err)
	}
	if machine, _, err := identity.Peer(c.(*tls.Conn).ConnectionState()); err != nil || machine != "ma" {
		t.Errorf("the peer is %q, %v", machine, err)
	}
	if err := ra.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ra.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if c, err := rb.Dial(t.Context(), ra.Addr()); err == nil {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
			t.Errorf("a raft connection after close: %v", err)
		}
		c.Close()
	}
	if _, err := b.socket.Status(t.Context()); err != nil {
		t.Errorf("HTTP after raft's end: %v", err)
	}
	if _, err := api.NewMeshClient(a.mesh, tlsOf(t, 0, "mb")).Status(t.Context()); err != nil {
		t.Errorf("HTTP after raft's end: %v", err)
	}
}

// A dial to a machine that is silent ends with its context.
func TestRaftDialDeadline(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := apitest.New()
	d := serve(t, m.Agent("m1"), "m1")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := d.Raft().Dial(ctx, l.Addr().String()); err == nil {
		t.Error("dialled a machine that says nothing")
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

// Strangers that connect and say nothing take a bounded number of places and
// lose them; the socket goes on all the while.
func TestSilentStrangers(t *testing.T) {
	m := apitest.New("n8n")
	d := serve(t, m.Agent("m1"), "m1")
	m.Lead(d.agent, d.mesh)
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	closed := func() bool {
		c, err := net.Dial("tcp", d.mesh)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		var ne net.Error
		return !errors.As(err, &ne) || !ne.Timeout()
	}
	// Fill the places without waiting for each.
	for range 128 {
		c, err := net.Dial("tcp", d.mesh)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	for end := time.Now().Add(4 * time.Second); !closed(); {
		if time.Now().After(end) {
			t.Fatal("more than 128 silent connections stay open")
		}
	}
	if _, err := d.socket.Status(t.Context()); err != nil {
		t.Errorf("the socket: %v", err)
	}
	for _, c := range idle {
		c.Close()
	}
	idle = nil
	client := api.NewMeshClient(d.mesh, tlsOf(t, 0, "m2"))
	for end := time.Now().Add(8 * time.Second); ; {
		_, err := client.Status(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no member gets in after the strangers went: %v", err)
		}
	}
}
