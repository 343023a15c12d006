package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"
)

// handshake connects two configs over loopback, one byte each way, and returns
// both ends' errors and what the server saw of the client.
//
//lint:ignore ST1008 the errors are the result here
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, seen, met tls.ConnectionState) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	echo := func(c *tls.Conn) error {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if err := c.HandshakeContext(ctx); err != nil {
			return err
		}
		if _, err := c.Write([]byte{1}); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 1))
		return err
	}
	done := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		c := tls.Server(raw, server)
		err = echo(c)
		seen = c.ConnectionState()
		done <- err
	}()
	raw, err := net.DialTimeout("tcp", ln.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	clientErr = echo(c)
	met = c.ConnectionState()
	raw.Close()
	return <-done, clientErr, seen, met
}

// config is TLS for a machine that booted at one time and whose clock shows
// another.
func config(t *testing.T, env, mesh, machine string, booted, clock time.Time) *tls.Config {
	t.Helper()
	c, err := secret(t, env).TLS(mesh, machine, NewBoot(), booted)
	if err != nil {
		t.Fatal(err)
	}
	c.Time = func() time.Time { return clock }
	return c
}

func TestTLSBetweenAgents(t *testing.T) {
	a, b, other := NewSecret(), NewSecret(), NewSecret()
	now := time.Now()
	for _, tt := range []struct {
		name             string
		oneEnv, twoEnv   string
		oneMesh, twoMesh string
		booted, clock    time.Time // of two; one booted now, by a true clock
		ok               bool
	}{
		{"same secret", a, a, "m", "m", now, now, true},
		{"another secret", a, other, "m", "m", now, now, false},
		{"another mesh name", a, a, "m", "n", now, now, false},
		{"rotation: new,old and old", b + "," + a, a, "m", "m", now, now, true},
		{"rotation: new,old and new", b + "," + a, b, "m", "m", now, now, true},
		{"rotation: new,old and old,new", b + "," + a, a + "," + b, "m", "m", now, now, true},
		{"rotation: new alone and old", b, a, "m", "m", now, now, false},
		{"rotation: new,old and a third", b + "," + a, other, "m", "m", now, now, false},
		{"three secrets and the last", other + "," + b + "," + a, a, "m", "m", now, now, true},
		{"a clock 23 h behind", a, a, "m", "m", now.Add(-23 * time.Hour), now.Add(-23 * time.Hour), true},
		{"a clock 25 h behind", a, a, "m", "m", now.Add(-25 * time.Hour), now.Add(-25 * time.Hour), false},
		{"a clock 23 h ahead", a, a, "m", "m", now.Add(23 * time.Hour), now.Add(23 * time.Hour), true},
		{"a peer up for 9 years", a, a, "m", "m", now.AddDate(-9, 0, 0), now, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one := config(t, tt.oneEnv, tt.oneMesh, "one", now, now)
			two := config(t, tt.twoEnv, tt.twoMesh, "two", tt.booted, tt.clock)
			for _, way := range []struct {
				server, client   *tls.Config
				serving, calling string
			}{{one, two, "one", "two"}, {two, one, "two", "one"}} {
				serverErr, clientErr, seen, met := handshake(t, way.server, way.client)
				if ok := serverErr == nil && clientErr == nil; ok != tt.ok {
					t.Fatalf("%s serves %s: server %v, client %v, want success %v", way.serving, way.calling, serverErr, clientErr, tt.ok)
				}
				if !tt.ok {
					continue
				}
				for machine, cs := range map[string]tls.ConnectionState{way.calling: seen, way.serving: met} {
					if got, boot, err := Peer(cs); err != nil || got != machine || len(boot) != 32 {
						t.Errorf("peer = %q %q %v, want %s", got, boot, err, machine)
					}
					if cs.Version != tls.VersionTLS13 || cs.DidResume {
						t.Errorf("version %x, resumed %v", cs.Version, cs.DidResume)
					}
				}
			}
		})
	}
}

// TestTLSRefusesStrangers tries what someone without the secret has.
func TestTLSRefusesStrangers(t *testing.T) {
	env := NewSecret()
	mine := config(t, env, "m", "one", time.Now(), time.Now())
	if serverErr, clientErr, _, _ := handshake(t, mine, &tls.Config{InsecureSkipVerify: true}); serverErr == nil || clientErr == nil {
		t.Errorf("a client without a certificate: server %v, client %v", serverErr, clientErr)
	}
	stranger := config(t, NewSecret(), "m", "one", time.Now(), time.Now())
	stranger.InsecureSkipVerify = true
	stranger.ClientAuth = tls.RequireAnyClientCert
	serverErr, _, seen, _ := handshake(t, mine, stranger)
	if serverErr == nil {
		t.Error("a client that checks nothing got in with its own authority")
	}
	if _, _, err := Peer(seen); err == nil {
		t.Error("a stranger has a name")
	}
	if _, clientErr, _, _ := handshake(t, stranger, mine); clientErr == nil {
		t.Error("a server with its own authority was believed")
	}
	var unknown *tls.CertificateVerificationError
	if !errors.As(serverErr, &unknown) {
		t.Errorf("server refused for another reason: %v", serverErr)
	}
	old := config(t, env, "m", "one", time.Now(), time.Now())
	old.MinVersion, old.MaxVersion = 0, tls.VersionTLS12
	if serverErr, _, _, _ := handshake(t, mine, old); serverErr == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

// TestTLSInABubble: a bubble's clock begins in the year 2000.
func TestTLSInABubble(t *testing.T) {
	env, then := NewSecret(), time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	if serverErr, clientErr, _, _ := handshake(t, config(t, env, "m", "one", then, then), config(t, env, "m", "two", then, then)); serverErr != nil || clientErr != nil {
		t.Errorf("server %v, client %v", serverErr, clientErr)
	}
}
