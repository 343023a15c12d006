// Package flytest is an emulator of the Fly Machines API.
//
// A Server is an http.Handler with the routes, shapes, status codes and
// behaviour over time that a client of the Machines API meets. What a machine
// is, a Launcher decides: Memory machines are state with hooks and live in a
// testing/synctest bubble; Processes machines are real processes, each with
// its own loopback address, root filesystem and CPU allowance.
//
// Beside the mesh under test there are actors, as on Fly: Deploy is `fly
// deploy` with its leases and strategies, Autostop is Fly Proxy's own scaling,
// Migrate, FailHost and RestoreHost are what hosts do. Their requests pass
// through the same handlers and stand in the audit log under their names, but
// no token, rate limit or fault concerns them.
//
// The contract: New starts nothing but what it was asked for; every method of
// Server may be called from any goroutine; Close ends every process, listener
// and goroutine that the Server started, and nothing else. All waiting is done
// with package time. Nothing of an emulator that crashed is cleaned up by the
// next one.
//
// # Limits of fidelity
//
// Nothing here was compared with the live API. In particular:
//
//   - Error texts, the blocking of stop and destroy under a foreign lease, and
//     the refusal of start right after create or stop are taken from field
//     reports. That a lease also refuses restart, suspend, cordon, uncordon
//     and signal is an assumption, and so is that a blocked stop is given up
//     when its client goes away, and that start of a started machine is a 412.
//   - Latencies are settings (Timing), far shorter than Fly's by default.
//   - Only config fields that fly-go knows survive a create or an update.
//     Guest sizes and images are not checked; mounts are kept in the config
//     but give no volume, volumes are listed as none; exec answers 501.
//   - A config without a restart policy is not restarted (Fly: on-failure).
//   - There are no images: a machine runs init.exec, or init.entrypoint and
//     init.cmd, from the host's own file system. Its root filesystem is a
//     directory (HOME, TMPDIR, working directory), not a jail.
//   - Private addresses of process machines are 127.0.0.0/8, not 6PN.
//   - A process machine is the set of processes that carry its FLY_MACHINE_ID
//     or sit in its cgroup. When the main process dies while others live, the
//     machine stays started until the last has ended; on Fly the init would
//     end it. This keeps the app alive when its agent alone is killed.
//   - Suspend stops the processes with SIGSTOP; clocks go on.
//   - The proxy spreads HTTP requests by least requests in flight and knows no
//     hard limit. What counts as load for Autostop are the requests in flight
//     at the moment of the pass.
//   - A deploy takes a machine for healthy when the checks of its routes pass,
//     waits at no other place where flyctl pauses, does not roll back a rolling
//     deploy that fails (nor does flyctl), and makes no release command machine.
//   - There is no /.fly/api socket and no OIDC endpoint.
package flytest
