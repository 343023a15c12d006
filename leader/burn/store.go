package burn

import (
	"encoding/json"
	"fmt"
	"time"

	"flymesh/probes/report"
)

// The two grains in which a goal is kept. The coarse one covers the longest
// span of any rule, the fine one all shorter spans.
const (
	fineStep, fineLength     = time.Minute, 6 * 60
	coarseStep, coarseLength = time.Hour, 3 * 24
)

// covers is how many report intervals the counts of a report are of, so that
// each request is in so many reports.
const covers = 12

// Store keeps three days of some goals. What it takes is known from the start:
// see Bytes.
type Store struct {
	every time.Duration
	goals []*kept
}

type kept struct {
	Goal
	fine, coarse ring
}

// bucket is one interval of a ring: N looks heard, and what they counted.
type bucket struct {
	N   uint32
	All float64
	Bad float64
}

// ring is as many intervals as its length, and the open one.
type ring struct {
	step time.Duration
	at   []uint32 // number of the interval in each slot; 0: none
	b    []bucket
}

func newRing(step time.Duration, length int) ring {
	return ring{step, make([]uint32, length+1), make([]bucket, length+1)}
}

// New returns an empty Store for a report interval.
func New(every time.Duration, goals ...Goal) *Store {
	s := &Store{every: every}
	for _, g := range goals {
		s.goals = append(s.goals, &kept{g, newRing(fineStep, fineLength), newRing(coarseStep, coarseLength)})
	}
	return s
}

// Bytes is what the rings take.
func (s *Store) Bytes() int { return len(s.goals) * (fineLength + coarseLength + 2) * (4 + 24) }

// Add counts the newest reports of all machines. It is called once a report
// interval.
func (s *Store) Add(now time.Time, reports []report.Report) {
	for _, g := range s.goals {
		heard, look := false, bucket{N: 1}
		for _, r := range reports {
			all, bad, ok := g.bad(r)
			heard = heard || ok
			look.All += all
			look.Bad += bad
		}
		if heard {
			g.fine.add(now, look)
			g.coarse.add(now, look)
		}
	}
}

func (r *ring) number(t time.Time) uint32 { return uint32(t.UnixNano() / int64(r.step)) }

func (r *ring) add(now time.Time, look bucket) {
	n := r.number(now)
	slot := int(n) % len(r.b)
	if r.at[slot] > n {
		return // the clock went back; what is kept stays
	}
	if r.at[slot] < n {
		r.at[slot], r.b[slot] = n, bucket{}
	}
	b := &r.b[slot]
	b.N, b.All, b.Bad = b.N+look.N, b.All+look.All, b.Bad+look.Bad
}

// Over returns what is known of a goal over the span that ends now.
func (s *Store) Over(now time.Time, service string, t Target, span time.Duration) Use {
	for _, g := range s.goals {
		if g.Service != service || g.Target != t {
			continue
		}
		r := &g.fine
		if span > fineLength*fineStep {
			r = &g.coarse
		}
		return r.over(now, span, s.every)
	}
	return Use{}
}

// over sums the intervals of a span and the open one.
func (r *ring) over(now time.Time, span, every time.Duration) (u Use) {
	last := r.number(now)
	var sum bucket
	for n := last - uint32(span/r.step); n <= last; n++ {
		slot := int(n) % len(r.b)
		if r.at[slot] != n {
			continue
		}
		b := r.b[slot]
		sum.N, sum.All, sum.Bad = sum.N+b.N, sum.All+b.All, sum.Bad+b.Bad
		begin := time.Unix(0, int64(n)*int64(r.step)).UTC()
		if u.First.IsZero() {
			u.First = begin
		}
		u.Last = begin.Add(r.step)
	}
	if u.Last.After(now) {
		u.Last = now
	}
	u.Requests = sum.All / covers
	u.Covered = min(1, float64(sum.N)*every.Seconds()/span.Seconds())
	if sum.All > 0 {
		u.Share = sum.Bad / sum.All
	}
	return u
}

// exportVersion is the format that Export writes and Import takes.
const exportVersion = 1

type exported struct {
	Version int            `json:"v"`
	Every   time.Duration  `json:"every"`
	Goals   []exportedGoal `json:"goals"`
}

type exportedGoal struct {
	Service string            `json:"service"`
	Target  Target            `json:"target"`
	Fine    map[uint32]bucket `json:"fine"`
	Coarse  map[uint32]bucket `json:"coarse"`
}

// Export returns everything for a new voter.
func (s *Store) Export() ([]byte, error) {
	e := exported{Version: exportVersion, Every: s.every}
	for _, g := range s.goals {
		e.Goals = append(e.Goals, exportedGoal{g.Service, g.Target, g.fine.export(), g.coarse.export()})
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("export burn rates: %w", err)
	}
	return b, nil
}

func (r *ring) export() map[uint32]bucket {
	m := map[uint32]bucket{}
	for i, n := range r.at {
		if n > 0 {
			m[n] = r.b[i]
		}
	}
	return m
}

// Import merges another voter's copy: of each interval the one that heard more
// stays. Goals that are not kept here are left out.
func (s *Store) Import(b []byte) error {
	var e exported
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("import burn rates: %w", err)
	}
	if e.Version != exportVersion || e.Every != s.every {
		return fmt.Errorf("import burn rates: format version %d of looks each %s, here %d and %s", e.Version, e.Every, exportVersion, s.every)
	}
	for _, x := range e.Goals {
		for _, g := range s.goals {
			if g.Service == x.Service && g.Target == x.Target {
				g.fine.merge(x.Fine)
				g.coarse.merge(x.Coarse)
			}
		}
	}
	return nil
}

func (r *ring) merge(m map[uint32]bucket) {
	for n, b := range m {
		slot := int(n) % len(r.b)
		known := r.at[slot] == n && r.b[slot].N >= b.N
		if n > 0 && r.at[slot] <= n && !known && b.N > 0 && b.Bad >= 0 && b.Bad <= b.All {
			r.at[slot], r.b[slot] = n, b
		}
	}
}
