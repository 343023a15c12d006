package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server says which server to ask, and as whom.
type Server struct {
	Addr     string // host:port
	Username string
	Password string
}

// Check says what is wrong with the address.
func (s Server) Check() error {
	_, _, err := net.SplitHostPort(s.Addr)
	return err
}

// Session is one connection to a server, for one probe: nothing is held that a
// restarted server would have to be told apart from.
type Session struct {
	*redis.Conn
	Trip time.Duration // of the PING that Open sent, there and back

	client *redis.Client
}

// Close ends the connection.
func (s *Session) Close() error {
	_ = s.Conn.Close()
	return s.client.Close()
}

// Refusal is an answer that is an error: LOADING, NOAUTH, MASTERDOWN. The
// server runs and takes no work.
type Refusal struct{ Text string }

// Error returns the server's words.
func (r *Refusal) Error() string { return r.Text }

// Open connects and sends a PING. A server that answers with an error gives a
// *Refusal. The caller closes the Session.
func (s Server) Open(ctx context.Context) (*Session, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return nil, err
	}
	// Dialled above, because the library's pool prints failures to stderr.
	dialled := make(chan net.Conn, 1)
	dialled <- conn
	client := redis.NewClient(&redis.Options{
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			select {
			case conn := <-dialled:
				return conn, nil
			default:
				return nil, net.ErrClosed
			}
		},
		Username: s.Username, Password: s.Password,
		Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
		MaxRetries: -1, DialerRetries: 1, PoolSize: 1,
	})
	c := &Session{Conn: client.Conn(), client: client}
	// The first command also greets and authenticates: only the second is a
	// round trip.
	err = c.Ping(ctx).Err()
	if err == nil {
		begin := time.Now()
		err = c.Ping(ctx).Err()
		c.Trip = time.Since(begin)
	}
	if err == nil {
		return c, nil
	}
	_ = c.Close()
	select {
	case conn := <-dialled:
		_ = conn.Close()
	default:
	}
	var answer redis.Error
	if errors.As(err, &answer) {
		return nil, &Refusal{answer.Error()}
	}
	return nil, fmt.Errorf("ping: %w", err)
}

// Info is what INFO says, by field.
type Info map[string]string

// Info asks for the default sections: Redis 6 takes no list of sections.
func (s *Session) Info(ctx context.Context) (Info, error) {
	text, err := s.Conn.Info(ctx).Result()
	if err != nil {
		return nil, err
	}
	return fields(text), nil
}

// Number returns a field that must be there.
func (i Info) Number(name string) (float64, error) {
	x, err := strconv.ParseFloat(i[name], 64)
	if err != nil {
		return 0, fmt.Errorf("info has no %s", name)
	}
	return x, nil
}

// sub reads the field "a=1,b=2" as its parts.
func (i Info) sub(name string) map[string]string {
	parts := map[string]string{}
	for p := range strings.SplitSeq(i[name], ",") {
		if k, v, ok := strings.Cut(p, "="); ok {
			parts[k] = v
		}
	}
	return parts
}

// fields reads the lines name:value of INFO.
func fields(text string) Info {
	all := Info{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			all[name] = value
		}
	}
	return all
}

// Errors is how many answers began with that word since the server started.
func (i Info) Errors(word string) float64 {
	x, _ := strconv.ParseFloat(i.sub("errorstat_" + word)["count"], 64) // absent until the first
	return x
}

// Keyspace counts the keys of all databases, and those with a time to live.
func (i Info) Keyspace() (keys, ending float64) {
	for name := range i {
		if n, ok := strings.CutPrefix(name, "db"); ok && n != "" && strings.Trim(n, "0123456789") == "" {
			k, _ := strconv.ParseFloat(i.sub(name)["keys"], 64)
			e, _ := strconv.ParseFloat(i.sub(name)["expires"], 64)
			keys, ending = keys+k, ending+e
		}
	}
	return keys, ending
}
