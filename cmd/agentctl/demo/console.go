package demo

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// console writes one line for each thing that happens, with the seconds since
// the start. Safe for use from many goroutines.
type console struct {
	mu    sync.Mutex // guards w
	w     io.Writer
	began time.Time
}

// say writes a line about something that happened now.
func (c *console) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.w, "%6.1fs  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// title writes the headline of what comes next.
func (c *console) title(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.w, "\n%6.1fs  == %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// text writes lines that belong to no moment.
func (c *console) text(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.w, format+"\n", args...)
}
