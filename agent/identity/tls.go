package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// serverName is in every leaf: peers are told apart by the name in the
// subject, and let in by who signed.
const serverName = "agent.flymesh"

// TLS returns the settings for both directions of a mesh connection: TLS 1.3,
// each side shows a leaf and verifies the other's. The leaf is new with each
// call and names machine.boot; see Peer.
//
// The authority is computed from the secret, alike on every machine (Ed25519
// signatures are deterministic), so nothing needs to be sent or stored. Where
// several secrets are set, the first one issues the leaf and all are trusted;
// the others vouch for the first one's authority, so that a peer that has only
// one of them still accepts the leaf. A leaf is good from a day before now,
// for peers whose clock lags.
func (s Secret) TLS(mesh, machine, boot string, now time.Time) (*tls.Config, error) {
	if len(s.keys()) == 0 {
		return nil, ErrNoSecret
	}
	pool := x509.NewCertPool()
	var authorities []authority
	for _, key := range s.keys() {
		a, err := newAuthority(key, mesh)
		if err != nil {
			return nil, fmt.Errorf("make mesh authority: %w", err)
		}
		pool.AddCert(a.cert)
		authorities = append(authorities, a)
	}
	first := authorities[0]
	leaf, err := first.issue(machine+"."+boot, now)
	if err != nil {
		return nil, fmt.Errorf("issue mesh certificate: %w", err)
	}
	for _, other := range authorities[1:] {
		cross, err := other.vouch(first)
		if err != nil {
			return nil, fmt.Errorf("vouch for mesh authority: %w", err)
		}
		leaf.Certificate = append(leaf.Certificate, cross)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{leaf},
		RootCAs:      pool,
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ServerName:   serverName,
		MinVersion:   tls.VersionTLS13,
		// A resumed session would carry an old verification past a change of
		// the secret; a full handshake costs little at our rates.
		SessionTicketsDisabled: true,
	}, nil
}

// Peer returns the machine and boot that the other side of a verified mesh
// connection is.
func Peer(cs tls.ConnectionState) (machine, boot string, err error) {
	if len(cs.VerifiedChains) == 0 || len(cs.PeerCertificates) == 0 {
		return "", "", errors.New("name mesh peer: connection is not verified")
	}
	name := cs.PeerCertificates[0].Subject.CommonName
	dot := strings.LastIndexByte(name, '.')
	if dot < 1 || dot == len(name)-1 {
		return "", "", fmt.Errorf("name mesh peer: %q is not machine.boot", name)
	}
	return name[:dot], name[dot+1:], nil
}

// authority is the certificate authority of one secret and mesh.
type authority struct {
	key  ed25519.PrivateKey
	cert *x509.Certificate
}

func newAuthority(secret []byte, mesh string) (authority, error) {
	key := ed25519.NewKeyFromSeed(derive(secret, "authority", mesh))
	t := authorityTemplate(mesh)
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return authority{key: key, cert: cert}, err
}

// authorityTemplate has no date or number of its own: the certificate must come
// out the same everywhere. It starts long ago so that no clock is too early.
func authorityTemplate(mesh string) *x509.Certificate {
	from := time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)
	return &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "flymesh " + mesh},
		NotBefore:             from,
		NotAfter:              from.AddDate(150, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
}

// vouch signs another authority of the same mesh.
func (a authority) vouch(other authority) ([]byte, error) {
	t := authorityTemplate("")
	t.Subject = other.cert.Subject
	return x509.CreateCertificate(rand.Reader, t, a.cert, other.key.Public(), a.key)
}

// issue makes a key and a leaf for it that lives as long as a process can.
func (a authority) issue(name string, now time.Time) (tls.Certificate, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(2)), // the authority has 1
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{serverName},
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, public, a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
