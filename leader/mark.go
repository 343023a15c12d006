package leader

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// lateFor is how long after its sending a call whose answer was lost may still
// be carried out.
const lateFor = 3 * time.Minute

// A removal marks its machine before it cordons it, so that a cordon that
// outlives its operation is known for the mesh's own and is taken back. The
// mark says when the cordon was sent and stays for lateFor: a cordon whose
// answer was lost may come after the machine was given back.

// markOf reads the mark on a machine: the removal's operation, and when it last
// sent a cordon. Empty: there is none.
func markOf(m Machine) (op string, sent time.Time) {
	op, text, _ := strings.Cut(m.Metadata[MetaRemoval], "@")
	if sec, err := strconv.ParseInt(text, 10, 64); err == nil {
		sent = time.Unix(sec, 0)
	}
	return op, sent
}

// outlived says that no cordon of a removal can come any more.
func outlived(sent time.Time) bool { return time.Since(sent) > lateFor }

func markFor(op string) string { return fmt.Sprintf("%s@%d", op, time.Now().Unix()) }
