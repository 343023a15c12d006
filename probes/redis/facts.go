package redis

import (
	"math"
	"slices"
	"time"

	"flymesh/probes"
	"flymesh/probes/report"
)

// tripsKept is how many PINGs the p95 of the round trip looks back on.
const tripsKept = 60

// roundTrip is the p95 of the newest PINGs: INFO's own latency statistics
// leave out the network and the wait for the single thread.
func (r *Redis) roundTrip(d time.Duration) probes.Fact {
	r.trips = append(r.trips, d.Seconds())
	if n := len(r.trips) - tripsKept; n > 0 {
		r.trips = slices.Delete(r.trips, 0, n)
	}
	sorted := slices.Sorted(slices.Values(r.trips))
	return fact("ping_p95_seconds", sorted[int(math.Ceil(0.95*float64(len(sorted))))-1])
}

func fact(name string, x float64) probes.Fact {
	return probes.Fact{Name: name, Value: report.Of(x)}
}

func word(name, text string) probes.Fact {
	return probes.Fact{Name: name, Text: text}
}

// pressure tells what a full server does about it. With an eviction policy
// the memory stays near 99 % for ever, so the rate of evictions is the signal;
// without one it is the rate of refused writes (errorstat_OOM, a line that is
// absent until the first).
func pressure(info Info, last sample, now *sample, rateErr error) []probes.Fact {
	facts := []probes.Fact{word("memory_limit", "maxmemory")}
	if limit, err := info.Number("maxmemory"); err != nil {
		facts = nil
	} else if limit == 0 {
		facts[0].Text = "none" // the memory is then measured against the machine's
	}
	if p := info["maxmemory_policy"]; p != "" {
		facts = append(facts, word("eviction_policy", p))
	}
	if x, err := info.Number("mem_fragmentation_bytes"); err == nil {
		facts = append(facts, fact("fragmentation_bytes", x)) // the ratio means nothing on a small server
	}
	var err error
	if now.evicted, err = info.Number("evicted_keys"); err == nil {
		now.haveEvicted = true
	}
	if now.connects, err = info.Number("rejected_connections"); err == nil {
		now.haveConnection = true
	}
	now.refused = info.Errors("OOM")
	if rateErr != nil {
		return facts
	}
	rate := func(name string, before, after float64) {
		if after < before { // CONFIG RESETSTAT: all of it came since
			before = 0
		}
		facts = append(facts, fact(name, (after-before)/(now.wall-last.wall)))
	}
	if now.haveEvicted && last.haveEvicted {
		rate("evicted_keys_per_second", last.evicted, now.evicted)
	}
	if now.haveConnection && last.haveConnection {
		rate("rejected_connections_per_second", last.connects, now.connects)
	}
	if _, ok := info["total_error_replies"]; ok { // Redis 6.2 and later count errors by kind
		rate("rejected_writes_per_second", last.refused, now.refused)
	}
	return facts
}
