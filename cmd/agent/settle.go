package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settled is when a mesh half has long joined, and a supervisor started its
// children.
const settled = 15 * time.Second

// settle gives back what the start needed once: freed memory, and the pages of
// the program's file. Those that are needed again come back from the page
// cache, where the two halves share them.
func settle() {
	debug.FreeOSMemory()
	_ = dropFilePages() // without /proc it is merely larger
}

// dropFilePages unmaps the clean pages of this program's file. A mapping of
// which a page was written is left alone: that page would be lost.
func dropFilePages() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	var from, to uintptr // of the mapping that the lines are about, if it is of this file
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		var a, b uintptr
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &a, &b, &perms); n == 3 {
			from, to = 0, 0
			if strings.HasSuffix(line, " "+exe) && strings.HasPrefix(perms, "r-") {
				from, to = a, b
			}
			continue
		}
		if from != 0 && strings.HasPrefix(line, "Anonymous:") && strings.HasSuffix(line, " 0 kB") {
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
				return errno
			}
		}
	}
	return lines.Err()
}
