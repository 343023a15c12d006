package config

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"flymesh/agent/identity"
)

// Exit codes of Check.
const (
	exitOK    = 0
	exitUsage = 2
)

// Check is `agent check`: it prints every problem of the file, one a line, and
// returns the exit code. With a getenv it checks the environment too (see
// CheckEnv); nil leaves that out.
func Check(w io.Writer, path string, getenv func(string) string) int {
	c, err := Load(path)
	if err == nil && getenv != nil {
		err = CheckEnv(c, getenv).err()
	} else if problems := (Problems{}); getenv != nil && errors.As(err, &problems) {
		// The secret can be judged without the file.
		err = append(problems, checkSecret(getenv)...)
	}
	if err != nil {
		fmt.Fprintln(w, err)
		return exitUsage
	}
	fmt.Fprintf(w, "%s: ok: %s\n", path, c.summary())
	return exitOK
}

// CheckEnv reports what an agent would miss in its environment: the secret,
// and on a machine that may lead, a Fly token for each app that the mesh
// scales. Where the environment does not say which machine it is, it asks for
// what a voter needs.
func CheckEnv(c *Config, getenv func(string) string) Problems {
	problems := checkSecret(getenv)
	if app := getenv("FLY_APP_NAME"); app != "" {
		group := getenv("FLY_PROCESS_GROUP")
		if group == "" {
			group = "app"
		}
		s, ok := c.ServiceOf(app, group)
		if !ok {
			return append(problems, envProblem("FLY_APP_NAME", "app %q with process group %q is no service of this mesh; its apps are %s", app, group, strings.Join(c.Apps(), ", ")))
		}
		if !s.Vote {
			return problems
		}
	}
	problems = append(problems, checkAlertKeys(c, getenv)...)
	_, missing := identity.Tokens(getenv, c.TokenApps())
	for _, app := range missing {
		problems = append(problems, envProblem(identity.TokenEnv(app),
			"is not set, nor is FLY_API_TOKEN: a voter needs a deploy token of app %s (fly tokens create deploy -a %s)", app, app))
	}
	return problems
}

func checkSecret(getenv func(string) string) Problems {
	if _, err := identity.ParseSecret(getenv("FLYMESH_SECRET")); err != nil {
		text := strings.TrimPrefix(err.Error(), "read FLYMESH_SECRET: ")
		return Problems{envProblem("FLYMESH_SECRET", "%s", strings.TrimPrefix(text, "FLYMESH_SECRET "))}
	}
	return nil
}

func envProblem(key, format string, args ...any) Problem {
	return Problem{File: "environment", Key: key, Message: fmt.Sprintf(format, args...)}
}

// summary says in one line what the file asks for.
func (c *Config) summary() string {
	services := make([]string, len(c.Services))
	for i, s := range c.Services {
		services[i] = fmt.Sprintf("%s %d to %d", s.Name, s.Policy.Baseline, s.Policy.Max)
		if s.Policy.Mode != "auto" {
			services[i] += fmt.Sprintf(" (%s)", s.Policy.Mode)
		}
	}
	text := fmt.Sprintf("mesh %s; services %s", c.Mesh.Name, strings.Join(services, ", "))
	if len(c.Jobs) > 0 {
		jobs := make([]string, len(c.Jobs))
		for i, j := range c.Jobs {
			jobs[i] = fmt.Sprintf("%s on %s", j.Name, j.Service)
		}
		text += "; jobs " + strings.Join(jobs, ", ")
	}
	return text + "; config " + c.hash
}
