// Package web is the page: every agent serves it on its health port, and it
// shows the whole mesh from any of them. It reads and never changes anything.
//
// Everything it needs is in the binary; the browser asks no other host. From
// the machine itself it is open; from elsewhere it needs the token that is
// derived from the mesh's secret. /health and /metrics are not its business.
package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"
)

//go:embed assets
var files embed.FS

// Options are what a page is made of.
type Options struct {
	// Data returns the newest state of the mesh as JSON, from wherever the
	// leader is; without a leader, what this machine knows.
	Data func(ctx context.Context) ([]byte, error)
	// History answers GET /v1/history.
	History http.HandlerFunc
	Token   string // opens the page from off the machine; empty: nothing does
	Logger  *slog.Logger
}

const (
	liveEvery  = 1500 * time.Millisecond // between two states sent to a browser
	writeLimit = 10 * time.Second        // for one of them to be taken
	maxLive    = 32                      // browsers that follow one agent
	cookieName = "flymesh_page"
	cookieAge  = 12 * time.Hour
)

// The page may run its own script and style, and ask this host alone.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Page serves the page. It is safe for use from many goroutines.
type Page struct {
	o      Options
	assets map[string]asset // by URL path
	live   chan struct{}    // one slot a browser that follows
	mux    *http.ServeMux
}

type asset struct {
	kind        string
	etag        string
	plain, gzip []byte
}

// New returns the page.
func New(o Options) (*Page, error) {
	p := &Page{o: o, assets: map[string]asset{}, live: make(chan struct{}, maxLive), mux: http.NewServeMux()}
	err := fs.WalkDir(files, "assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return p.load(name)
	})
	if err != nil {
		return nil, fmt.Errorf("load page: %w", err)
	}
	p.mux.HandleFunc("GET /{$}", p.index)
	p.mux.HandleFunc("GET /assets/", p.asset)
	p.mux.HandleFunc("GET /live", p.follow)
	p.mux.HandleFunc("GET /v1/history", o.History)
	return p, nil
}

func (p *Page) load(name string) error {
	b, err := files.ReadFile(name)
	if err != nil {
		return err
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	kind := mime.TypeByExtension(path.Ext(name))
	if kind == "" {
		kind = "text/plain; charset=utf-8"
	}
	sum := sha256.Sum256(b)
	p.assets["/"+name] = asset{kind: kind, etag: `"` + hex.EncodeToString(sum[:8]) + `"`, plain: b, gzip: z.Bytes()}
	return nil
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	switch {
	case r.URL.Path == "/" && r.URL.Query().Has("token") && r.Method == http.MethodGet:
		p.enter(w, r)
	case !p.allowed(r):
		h.Set("WWW-Authenticate", `Bearer realm="flymesh"`)
		http.Error(w, "This page needs its token: open /?token=TOKEN once. `agentctl secret page --mesh NAME` prints it where FLYMESH_SECRET is set.", http.StatusUnauthorized)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET")
		http.Error(w, "The page only reads.", http.StatusMethodNotAllowed)
	default:
		p.mux.ServeHTTP(w, r)
	}
}

// allowed says whether a request may see the page: it comes from this machine,
// to an address of this machine (a name could be anybody's), or has the token.
func (p *Page) allowed(r *http.Request) bool {
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && from.Addr().Unmap().IsLoopback() && ownHost(r.Host) {
		return true
	}
	if c, err := r.Cookie(cookieName); err == nil && p.opens(c.Value) {
		return true
	}
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && p.opens(bearer)
}

func ownHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (p *Page) opens(token string) bool {
	return p.o.Token != "" && subtle.ConstantTimeCompare([]byte(token), []byte(p.o.Token)) == 1
}

// enter trades a right token in the address for a cookie, so that the address
// bar and the history do not keep it.
func (p *Page) enter(w http.ResponseWriter, r *http.Request) {
	if !p.opens(r.URL.Query().Get("token")) {
		http.Error(w, "This is not the page's token.", http.StatusUnauthorized)
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: p.o.Token, Path: "/", MaxAge: int(cookieAge / time.Second), HttpOnly: true,
		SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
	})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (p *Page) index(w http.ResponseWriter, r *http.Request) {
	p.send(w, r, p.assets["/assets/index.html"])
}

func (p *Page) asset(w http.ResponseWriter, r *http.Request) {
	a, ok := p.assets[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	p.send(w, r, a)
}

func (p *Page) send(w http.ResponseWriter, r *http.Request, a asset) {
	h := w.Header()
	h.Set("Cache-Control", "no-cache") // ask again, and hear 304
	h.Set("Etag", a.etag)
	h.Set("Vary", "Accept-Encoding")
	if r.Header.Get("If-None-Match") == a.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", a.kind)
	body := a.plain
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = a.gzip
	}
	w.Write(body) // the browser is gone if this fails
}

// follow sends the state of the mesh again and again, until the browser or the
// agent goes. A browser comes back by itself.
func (p *Page) follow(w http.ResponseWriter, r *http.Request) {
	select {
	case p.live <- struct{}{}:
		defer func() { <-p.live }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "Too many browsers follow this machine; open the page of another one.", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Vary", "Accept-Encoding")
	rc := http.NewResponseController(w)
	out, flush := io.Writer(w), rc.Flush
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") { // one state is much like the one before
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer z.Close()
		out, flush = z, func() error { return errors.Join(z.Flush(), rc.Flush()) }
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil { // the request is read; the answer goes on
		return
	}
	t := time.NewTicker(liveEvery)
	defer t.Stop()
	for {
		b, err := p.o.Data(r.Context())
		if err != nil {
			p.o.Logger.Debug("page data failed", "error", err)
			b = []byte("null")
		}
		if err := rc.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
			return
		}
		if _, err := fmt.Fprintf(out, "retry: 1000\ndata: %s\n\n", b); err != nil {
			return
		}
		if err := flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-t.C:
		}
	}
}
