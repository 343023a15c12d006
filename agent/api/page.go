package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

func encodePage(p Page) ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode page: %w", err)
	}
	return b, nil
}

func (s *Server) history(r *http.Request, _ []byte) (work, error) {
	q, err := parseHistory(r.URL.Query())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (any, error) { return s.o.Backend.History(ctx, q) }, nil
}

func (s *Server) page(*http.Request, []byte) (work, error) {
	return func(ctx context.Context) (any, error) { return s.o.Backend.Page(ctx) }, nil
}

// ServeHistory answers the page's question for the past of a service.
func (s *Server) ServeHistory(w http.ResponseWriter, r *http.Request) {
	s.leading(maxBody, s.history)(w, r)
}

// PageData is what PathPage answers, asked for by this process.
func (s *Server) PageData(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	self, addr, ok := s.o.Backend.Route()
	switch {
	case self:
		p, err := s.o.Backend.Page(ctx)
		if err == nil {
			return encodePage(p)
		}
		if !errors.Is(err, ErrNoLeader) {
			return nil, fmt.Errorf("make page: %w", err)
		}
	case ok:
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+PathPage, http.NoBody)
		if err != nil {
			return nil, fmt.Errorf("make page: %w", err)
		}
		if resp, err := s.forward(ctx, r, addr, nil, 0); err == nil && resp.status == http.StatusOK {
			return resp.body, nil
		}
	}
	st := s.o.Backend.LocalStatus()
	st.Leader = nil
	return encodePage(Page{Status: st.whole()})
}
