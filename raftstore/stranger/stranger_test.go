package stranger

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestFlood: each host once for each kind, then one sum a minute, and a host
// that comes back after quiet is told of again.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := New(slog.New(slog.NewTextHandler(&b, nil)))
		lines := func() []string {
			l.mu.Lock()
			defer l.mu.Unlock()
			s := strings.Split(strings.TrimSpace(b.String()), "\n")
			b.Reset()
			return s
		}
		for i := range 10_000 {
			l.Refused(fmt.Sprintf("[fdaa::%d]:%d", i%2, i), "key", "no key fits", "n", i)
		}
		l.Refused("[fdaa::1]:7", "label", "another mesh")
		if got := lines(); len(got) != 3 || !strings.Contains(got[0], `msg=refused remote=[fdaa::0]:0 reason="no key fits" n=0`) {
			t.Errorf("first lines: %q", got)
		}
		for i := range 3 * most { // every host another one: no more is kept than that
			l.Refused(fmt.Sprintf("[fdaa::a:%d]:1", i), "key", "no key fits")
		}
		if got := lines(); len(got) != most-3 || len(l.told) != most {
			t.Errorf("%d lines, %d hosts kept; want %d of %d", len(got), len(l.told), most-3, most)
		}
		time.Sleep(every + time.Second)
		synctest.Wait()
		if got := lines(); len(got) != 1 || !strings.Contains(got[0], fmt.Sprintf(`msg="refused more" times=%d remote=[fdaa::a:`, 9998+2*most+3)) {
			t.Errorf("sum: %q", got)
		}
		time.Sleep(every)
		synctest.Wait()
		if got := lines(); got[0] != "" || len(l.told) > 0 || l.armed {
			t.Errorf("after quiet: %q, %d kept, armed %v", got, len(l.told), l.armed)
		}
		l.Refused("[fdaa::1]:7", "key", "no key fits")
		if got := lines(); len(got) != 1 || !strings.Contains(got[0], "msg=refused ") {
			t.Errorf("back again: %q", got)
		}
	})
}
