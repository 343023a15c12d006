package flytest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// signalNumber reads SIGTERM, TERM or 15.
func signalNumber(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	switch strings.TrimPrefix(strings.ToUpper(s), "SIG") {
	case "ABRT":
		return syscall.SIGABRT, nil
	case "HUP":
		return syscall.SIGHUP, nil
	case "INT":
		return syscall.SIGINT, nil
	case "QUIT":
		return syscall.SIGQUIT, nil
	case "KILL":
		return syscall.SIGKILL, nil
	case "TERM":
		return syscall.SIGTERM, nil
	case "USR1":
		return syscall.SIGUSR1, nil
	case "USR2":
		return syscall.SIGUSR2, nil
	}
	return 0, fmt.Errorf("read signal: %q is none that a machine takes", s)
}

// signalName is a signal in a request body: a name, or (fly-go) a number.
type signalName string

func (s *signalName) UnmarshalJSON(b []byte) error {
	var n int
	if json.Unmarshal(b, &n) == nil {
		*s = signalName(strconv.Itoa(n))
		return nil
	}
	var name string
	if err := json.Unmarshal(b, &name); err != nil {
		return err
	}
	*s = signalName(name)
	return nil
}
