package history

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
)

// exportVersion is the format that Export writes and Import takes.
const exportVersion = 1

var order = binary.LittleEndian

// errShort says that a copy ends too early.
var errShort = errors.New("it ends too early")

// Export returns everything for a new voter.
func (h *History) Export() []byte {
	b := []byte{exportVersion}
	b = order.AppendUint64(b, uint64(h.step))
	put := func(rings map[string]*ring, owner map[string]string) {
		b = order.AppendUint32(b, uint32(len(rings)))
		for _, name := range slices.Sorted(maps.Keys(rings)) {
			r := rings[name]
			b = appendText(appendText(b, name), owner[name])
			at := len(b)
			b = order.AppendUint32(b, 0)
			n := uint32(0)
			r.each(0, func(i uint32, x []float32) {
				n++
				b = order.AppendUint32(b, i)
				for _, v := range x {
					b = order.AppendUint32(b, math.Float32bits(v))
				}
			})
			order.PutUint32(b[at:], n)
		}
	}
	put(h.services, nil)
	put(h.machines, h.owner)
	return b
}

// Import merges another voter's copy: what is known here stays.
func (h *History) Import(b []byte) error {
	r := &reader{Reader: bytes.NewReader(b)}
	if v := r.byte(); r.err == nil && v != exportVersion {
		return fmt.Errorf("import history: format version %d, this build knows %d", v, exportVersion)
	}
	if step := r.uint64(); r.err == nil && step != uint64(h.step) {
		return fmt.Errorf("import history: its intervals are of %d ns, here of %d", step, h.step)
	}
	for _, part := range []struct {
		rings map[string]*ring
		cols  int
		most  int
	}{{h.services, serviceCols, MaxServices}, {h.machines, machineCols, MaxMachines}} {
		for range r.count(part.most) {
			name, owner := r.text(), r.text()
			n := r.count(Length)
			if r.err != nil {
				break
			}
			to := part.rings[name]
			if to == nil {
				h.room(part.rings, part.most)
				to = newRing(part.cols)
				part.rings[name] = to
			}
			if owner != "" {
				h.owner[name] = owner
			}
			x := make([]float32, part.cols)
			for range n {
				at := r.uint32()
				for i := range x {
					x[i] = math.Float32frombits(r.uint32())
				}
				if r.err == nil {
					to.put(at, x)
				}
			}
		}
	}
	if r.err != nil {
		return fmt.Errorf("import history: %w", r.err)
	}
	return nil
}

func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), 255)]
	return append(append(b, byte(len(s))), s...)
}

// reader reads until the first error, and zeros from then on.
type reader struct {
	*bytes.Reader
	err error
}

func (r *reader) take(n int) []byte {
	b := make([]byte, n)
	if r.err == nil && r.Len() < n {
		r.err = errShort
	}
	if r.err != nil {
		return b
	}
	r.Read(b) // there are n bytes
	return b
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint32() uint32 { return order.Uint32(r.take(4)) }
func (r *reader) uint64() uint64 { return order.Uint64(r.take(8)) }
func (r *reader) text() string   { return string(r.take(int(r.byte()))) }

// count reads a number of things, of which there cannot be more than most.
func (r *reader) count(most int) int {
	n := r.uint32()
	if r.err == nil && n > uint32(most) {
		r.err = fmt.Errorf("%d where at most %d can be", n, most)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}
