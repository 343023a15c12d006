package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/DataDog/sketches-go/ddsketch"
	"github.com/DataDog/sketches-go/ddsketch/encoding"
	"github.com/DataDog/sketches-go/ddsketch/mapping"
	"github.com/DataDog/sketches-go/ddsketch/store"
)

// Accuracy is the relative error of a quantile of a Sketch that was not
// coarsened on the wire.
const Accuracy = 0.01

const (
	minSeconds = 1e-6    // shorter durations count as zero
	maxSeconds = 86400.0 // longer ones count as one day
	minCount   = 1e-6    // the wire form of a count keeps about 15 places after the point
	maxCount   = 1e15    // bound of one bin on the wire, so that sums stay exact
)

// Sketch is a distribution of durations in seconds that merges without loss:
// a DDSketch with a relative error of Accuracy. It holds at most about 1,300
// bins (1 us to one day). Methods that only read may run at the same time.
type Sketch struct {
	dd *ddsketch.DDSketch
}

// NewSketch returns an empty Sketch.
func NewSketch() *Sketch {
	m, err := mapping.NewLogarithmicMapping(Accuracy)
	if err != nil {
		panic(err) // Accuracy is a constant inside the allowed range
	}
	return &Sketch{dd: ddsketch.NewDDSketch(m, store.NewDenseStore(), store.NewDenseStore())}
}

// Add counts one duration. Negative durations (a clock stepped back) count as
// zero, NaN is ignored.
func (s *Sketch) Add(seconds float64) { s.AddCount(seconds, 1) }

// AddCount counts a duration count times; a count below a millionth or over
// 1e15 (or NaN) is ignored.
func (s *Sketch) AddCount(seconds, count float64) {
	if math.IsNaN(seconds) || !(count >= minCount && count <= maxCount) {
		return
	}
	seconds = min(seconds, maxSeconds)
	if seconds < minSeconds {
		seconds = 0
	}
	if err := s.dd.AddWithCount(seconds, count); err != nil {
		panic(err) // value and count were bounded above
	}
}

// Merge adds all that other holds. A nil other adds nothing.
func (s *Sketch) Merge(other *Sketch) error {
	if other == nil {
		return nil
	}
	if err := s.dd.MergeWith(other.dd); err != nil {
		return fmt.Errorf("merge sketch: %w", err)
	}
	return nil
}

// Quantile returns the duration in seconds below which the share q (0 to 1) of
// the counted durations lies. It is NaN when the sketch is empty or q is no
// share.
func (s *Sketch) Quantile(q float64) float64 {
	v, err := s.dd.GetValueAtQuantile(q)
	if err != nil {
		return math.NaN()
	}
	return v
}

// Count returns how many durations were counted.
func (s *Sketch) Count() float64 { return s.dd.GetCount() }

// Over returns how many durations are longer than a bound, as exactly as the
// sketch is.
func (s *Sketch) Over(seconds float64) (n float64) {
	s.dd.ForEach(func(value, count float64) bool {
		if value > seconds {
			n += count
		}
		return false
	})
	return n
}

// Clone returns an independent copy.
func (s *Sketch) Clone() *Sketch {
	if s == nil {
		return nil
	}
	return &Sketch{dd: s.dd.Copy()}
}

// Equal says whether both hold the same counts in the same bins.
func (s *Sketch) Equal(o *Sketch) bool {
	if s == nil || o == nil {
		return s == o
	}
	return string(s.encode(0)) == string(o.encode(0))
}

// MarshalJSON writes the sketch as a base64 string of its native encoding, in
// full resolution.
func (s *Sketch) MarshalJSON() ([]byte, error) { return json.Marshal(s.encode(0)) }

// UnmarshalJSON reads what MarshalJSON wrote and refuses anything else.
func (s *Sketch) UnmarshalJSON(b []byte) error {
	var raw []byte
	if err := json.Unmarshal(b, &raw); err != nil {
		return fmt.Errorf("decode sketch: %w", err)
	}
	d, err := decodeSketch(raw, 0)
	if err != nil {
		return fmt.Errorf("decode sketch: %w", err)
	}
	*s = *d
	return nil
}

// maxLevel is where all bins of a sketch fall together: 2^11 > 1,300.
const maxLevel = 11

// encode returns the native encoding without mapping, each 1<<level
// neighbouring bins collapsed into one.
func (s *Sketch) encode(level int) []byte {
	dd := s.dd
	if level > 0 {
		coarse := store.NewDenseStore()
		dd.GetPositiveValueStore().ForEach(func(index int, count float64) bool {
			coarse.AddWithCount(index>>level, count)
			return false
		})
		dd = ddsketch.NewDDSketch(dd.IndexMapping, coarse, store.NewDenseStore())
		if zero := s.dd.GetZeroCount(); zero > 0 {
			if err := dd.AddWithCount(0, zero); err != nil {
				panic(err) // zero is a finite positive count
			}
		}
	}
	var b []byte
	dd.Encode(&b, true)
	return b
}

var (
	errBlock = errors.New("unknown block in sketch")
	errOrder = errors.New("sketch bins out of order or range")
	errCount = errors.New("sketch count out of range")
)

// decodeSketch reads what encode wrote with the same level. A collapsed bin
// returns to the two bins in its middle, half each, which bounds the error of
// a quantile by (2^level+1) x Accuracy. It checks every bin itself, because
// the library's own decoder drops the errors of its stores and takes any index.
func decodeSketch(b []byte, level int) (*Sketch, error) {
	s := NewSketch()
	lo, hi := s.dd.Index(minSeconds)>>level, s.dd.Index(maxSeconds)>>level
	last := encoding.FlagType{}
	for n := 0; len(b) > 0; n++ {
		flag, err := encoding.DecodeFlag(&b)
		if err != nil {
			return nil, err
		}
		switch {
		case flag == encoding.FlagZeroCountVarFloat && n == 0:
			count, err := decodeCount(&b)
			if err != nil {
				return nil, err
			}
			s.AddCount(0, count)
		case flag.Type() == encoding.FlagTypePositiveStore && last != encoding.FlagTypePositiveStore:
			if err := s.decodeBins(&b, flag.SubFlag(), level, lo, hi); err != nil {
				return nil, err
			}
		default:
			return nil, errBlock
		}
		last = flag.Type()
	}
	return s, nil
}

func (s *Sketch) decodeBins(b *[]byte, mode encoding.SubFlag, level, lo, hi int) error {
	bins, err := encoding.DecodeUvarint64(b)
	if err != nil {
		return err
	}
	if bins == 0 || bins > uint64(hi-lo+1) {
		return errOrder
	}
	dense := mode == encoding.BinEncodingContiguousCounts
	if !dense && mode != encoding.BinEncodingIndexDeltasAndCounts {
		return errBlock
	}
	index := int64(0)
	for i := range bins {
		if i == 0 || !dense {
			delta, err := encoding.DecodeVarint64(b)
			if err != nil {
				return err
			}
			if i == 0 && (delta < int64(lo) || delta > int64(hi)) || i > 0 && (delta < 1 || delta > int64(hi-lo)) {
				return errOrder
			}
			index += delta
			if dense {
				step, err := encoding.DecodeVarint64(b)
				if err != nil {
					return err
				}
				if step != 1 {
					return errOrder
				}
			}
		} else {
			index++
		}
		if index > int64(hi) {
			return errOrder
		}
		count, err := decodeCount(b)
		if errors.Is(err, errCount) && dense && count == 0 {
			continue // a gap between dense bins
		}
		if err != nil {
			return err
		}
		s.place(int(index), level, count)
	}
	return nil
}

// place counts a bin of the given level in the middle of the bins it covers.
func (s *Sketch) place(index, level int, count float64) {
	bins := s.dd.GetPositiveValueStore()
	if level == 0 {
		bins.AddWithCount(index, count)
		return
	}
	middle := index<<level + 1<<(level-1)
	bins.AddWithCount(middle-1, count/2)
	bins.AddWithCount(middle, count/2)
}

func decodeCount(b *[]byte) (float64, error) {
	count, err := encoding.DecodeVarfloat64(b)
	if err != nil {
		return 0, err
	}
	if !(count > 0 && count <= maxCount) {
		return count, errCount
	}
	return count, nil
}
