package gossip

import (
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxRead is the largest datagram that is taken in. Longer ones than
	// maxDatagram come from nobody of the mesh; cut off, they do not decrypt.
	maxRead    = 2048
	readBuffer = 1 << 20 // of the kernel, for bursts; it grants what it allows
	maxPause   = time.Second
)

// sockets is one UDP and one TCP socket on the same port. It does what
// memberlist's NetTransport does but for one thing: that allocates 64 KiB for
// each packet it receives, which is half of all that an idle agent allocates.
type sockets struct {
	udp     *net.UDPConn
	tcp     *net.TCPListener
	log     *log.Logger
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

var _ memberlist.NodeAwareTransport = (*sockets)(nil)

// listen opens both sockets. The port that the system chooses for TCP may be
// taken for UDP, hence the tries.
func listen(ip netip.Addr, port int, l *log.Logger) (*sockets, error) {
	if port < 0 || port > 65535 {
		return nil, fmt.Errorf("port %d does not exist", port)
	}
	tries := 1
	if port == 0 {
		tries = 10
	}
	var err error
	for range tries {
		var s *sockets
		if s, err = openSockets(ip, port, l); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func openSockets(ip netip.Addr, port int, l *log.Logger) (*sockets, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(port))))
	if err != nil {
		return nil, err
	}
	port = tcp.Addr().(*net.TCPAddr).Port
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(port))))
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	if err := udp.SetReadBuffer(readBuffer); err != nil {
		return nil, errors.Join(err, udp.Close(), tcp.Close())
	}
	s := &sockets{
		udp: udp, tcp: tcp, log: l, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{}),
	}
	s.wg.Go(s.readPackets)
	s.wg.Go(s.acceptStreams)
	return s, nil
}

// readPackets hands each packet on in memory of its own, which memberlist keeps.
func (s *sockets) readPackets() {
	buf := make([]byte, maxRead)
	for pause := time.Duration(0); ; {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		at := time.Now()
		if err != nil {
			if !s.retry("read packet", err, &pause) {
				return
			}
			continue
		}
		pause = 0
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
		select {
		case s.packets <- p:
		case <-s.done:
			return
		}
	}
}

func (s *sockets) acceptStreams() {
	for pause := time.Duration(0); ; {
		c, err := s.tcp.AcceptTCP()
		if err != nil {
			if !s.retry("accept stream", err, &pause) {
				return
			}
			continue
		}
		pause = 0
		select {
		case s.streams <- c:
		case <-s.done:
			c.Close()
			return
		}
	}
}

// retry waits a little after an error and reports whether to go on.
func (s *sockets) retry(what string, err error, pause *time.Duration) bool {
	select {
	case <-s.done:
		return false
	default:
	}
	s.log.Printf("[ERR] %s: %v", what, err)
	*pause = min(max(2**pause, 5*time.Millisecond), maxPause)
	select {
	case <-s.done:
		return false
	case <-time.After(*pause):
		return true
	}
}

// FinalAdvertiseAddr implements memberlist.Transport: what it is bound to.
func (s *sockets) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a := s.tcp.Addr().(*net.TCPAddr)
	return a.IP, a.Port, nil
}

// WriteTo implements memberlist.Transport.
func (s *sockets) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send packet: %w", err)
	}
	_, err = s.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (s *sockets) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return s.WriteTo(b, a.Addr)
}

// DialTimeout implements memberlist.Transport.
func (s *sockets) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", addr, d)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (s *sockets) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	return s.DialTimeout(a.Addr, d)
}

// PacketCh implements memberlist.Transport.
func (s *sockets) PacketCh() <-chan *memberlist.Packet { return s.packets }

// StreamCh implements memberlist.Transport.
func (s *sockets) StreamCh() <-chan net.Conn { return s.streams }

// Shutdown implements memberlist.Transport. It waits for the sockets' goroutines.
func (s *sockets) Shutdown() error {
	var err error
	s.once.Do(func() {
		close(s.done)
		err = errors.Join(s.udp.Close(), s.tcp.Close())
	})
	s.wg.Wait()
	return err
}
