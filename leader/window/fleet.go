package window

import (
	"math"

	"flymesh/probes/report"
)

// fleet is one service's machines at one tick.
//
// The means are over the machines in Ready: one that is booting, warming or
// draining takes no new traffic, so it must neither dilute the mean nor push
// it. When none is ready all that are heard count, because a machine whose
// probe fails under load is not ready either. Requests, errors and latencies
// count wherever they happened.
type fleet struct {
	heard    []*machine
	allServe bool // none is ready: all that are heard count
	missing  int  // machines that should be heard and are not
}

func (g fleet) serves(m *machine) bool { return g.allServe || m.report.Readiness == report.Ready }

// known returns a measurement that can be believed, else 0.
func known(v report.Value) (float64, bool) {
	if !v.OK || !(v.X >= 0 && v.X <= maxValue) { // NaN is not >= 0
		return 0, false
	}
	return v.X, true
}

// unbounded is the interval of a value of which nothing is known.
func unbounded(ceiling float64) Interval { return Interval{Best: 0, Worst: ceiling} }

// mean is the mean over the serving machines; one that is missing, or does not
// say, counts 0 at best and ceiling at worst (or the highest value heard, where
// that is higher).
func (g fleet) mean(ceiling float64, of func(*report.Report) report.Value) Interval {
	sum, top, n, absent := 0.0, ceiling, 0, g.missing
	for _, m := range g.heard {
		if !g.serves(m) {
			continue
		}
		x, ok := known(of(&m.report))
		if !ok {
			absent++
			continue
		}
		sum, top, n = sum+x, max(top, x), n+1
	}
	switch {
	case n == 0:
		return unbounded(ceiling)
	case absent == 0:
		x := sum / float64(n)
		return Interval{Best: x, Worst: x, Value: report.Of(x)}
	}
	all := float64(n + absent)
	return Interval{
		Best:  sum / all,
		Worst: (sum + float64(absent)*top) / all,
		Value: report.Of(sum / float64(n)),
	}
}

// queue is the newest reading of the service's one queue where any machine
// sees that (nothing is missing then), else the mean depth per machine.
func (g fleet) queue() (q Interval, total bool) {
	var newest *machine
	for _, m := range g.heard {
		if _, ok := known(m.report.Queue); ok && m.report.QueueScope == report.QueueService {
			if newest == nil || m.heard.After(newest.heard) {
				newest = m
			}
		}
	}
	if newest != nil {
		x := newest.report.Queue.X
		return Interval{Best: x, Worst: x, Value: report.Of(x)}, true
	}
	return g.mean(math.Inf(1), func(r *report.Report) report.Value { return r.Queue }), false
}

// p95 is the quantile 0.95 of all requests. Each of m machines without data is
// assumed to have had as many requests as the k with data had on average, all
// of them faster (best) or slower (worst) than any that was measured. Too few
// requests to tell (fewer than least, all machines heard) are no missing data:
// at best there is no problem, at worst it is what was measured.
func (g fleet) p95(least int) (p Interval, count float64) {
	all := report.NewSketch()
	k, m := 0, g.missing
	for _, x := range g.heard {
		r := &x.report
		requests, ok := known(r.Requests)
		switch {
		case r.Latency != nil && all.Merge(r.Latency) == nil:
			k++
		case r.Latency == nil && ok && requests == 0:
			k++ // nothing was asked of it
		case g.serves(x) || ok:
			m++
		}
	}
	count = all.Count()
	if k == 0 || count == 0 && m > 0 {
		return unbounded(math.Inf(1)), count
	}
	p = Interval{Best: 0, Worst: 0}
	if count == 0 {
		return p, 0
	}
	measured, share := all.Quantile(0.95), 0.95*float64(k+m)
	if count >= float64(least) {
		p.Value = report.Of(measured)
		if q := (share - float64(m)) / float64(k); q > 0 {
			p.Best = all.Quantile(min(q, 1))
		}
	}
	p.Worst = math.Inf(1)
	if q := share / float64(k); q < 1 {
		p.Worst = all.Quantile(q)
	}
	return p, count
}

// errorRate is the share of failed requests. A machine without data is assumed
// to have had as many requests as the others on average, none (best) or all
// (worst) of them failed.
func (g fleet) errorRate(least int) (rate Interval, total float64) {
	errors, k, m := 0.0, 0, g.missing
	for _, x := range g.heard {
		requests, okR := known(x.report.Requests)
		failed, okE := known(x.report.Errors)
		switch {
		case okR && (okE || requests == 0):
			k++
			total += requests
			errors += min(failed, requests)
		case g.serves(x) || okR:
			m++
		}
	}
	if k == 0 || total == 0 && m > 0 {
		return unbounded(1), total
	}
	if total == 0 {
		return Interval{}, 0
	}
	unseen := total / float64(k) * float64(m)
	rate = Interval{Worst: (errors + unseen) / (total + unseen)}
	if total >= float64(least) {
		rate.Best, rate.Value = errors/(total+unseen), report.Of(errors/total)
	}
	return rate, total
}

// inFlight is the sum over what was heard; absent when no machine says.
func (g fleet) inFlight() report.Value {
	var sum report.Value
	for _, m := range g.heard {
		if x, ok := known(m.report.InFlight); ok {
			sum = report.Of(sum.X + x)
		}
	}
	return sum
}
