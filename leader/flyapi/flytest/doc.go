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
// # What it covers
//
//   - Identifiers and shapes: 14 hex digits, ULIDs, fdaa: addresses, unique
//     names, fly-request-id, events newest first, autostop as a boolean or
//     "suspend", incomplete_config while a host is away.
//   - The routes that fly-go calls, in both spellings where the client and the
//     document differ; 401, 403, 404, 408, 409, 412, 422, 429 and 503 where the
//     state of things asks for them, with the texts that users report; the rate
//     limit of all clients together. What needs a cause that is not emulated
//     (a full host or region, a quota, a volume, an ambiguous create) and every
//     502 and 503, before or after the commit, is a Fault with its body.
//   - Machines over time: created, starting, started; start refused at first;
//     stop, suspend, destroy, update with a new version; leases that refuse or
//     block; metadata without a new version; wait for up to a minute; listings
//     that lag, with the affinity cookie's read-your-writes, or lack a machine
//     (Hide); root filesystems wiped as Fly wipes them; restart policies.
//   - Hosts: Migrate, SetHost, FailHost, RestoreHost; Discard of a snapshot.
//   - Others: deploys by four strategies, the proxy's autostop and autostart,
//     routes gated by cordon and health checks.
//   - A machine's /.fly/api, for its own app without a token, and OIDC tokens of
//     an issuer of the emulator's own (/_emulator/oidc).
//   - The audit log, and every exchange held against Fly's OpenAPI document with
//     that document's known errors as a list (package openapi).
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
//   - Suspend stops the processes with SIGSTOP; clocks go on, so that a resumed
//     process finds its monotonic clock ahead, not its wall clock behind.
//   - The proxy spreads HTTP requests by least requests in flight and knows no
//     hard limit. What counts as load for Autostop are the requests in flight
//     at the moment of the pass.
//   - A deploy takes a machine for healthy when the checks of its routes pass,
//     waits at no other place where flyctl pauses, does not roll back a rolling
//     deploy that fails (nor does flyctl), and makes no release command machine.
//   - /.fly/api is .fly/api in the directory that is a process machine's root
//     filesystem. That it serves the whole of the machine's app is an
//     assumption: Fly documents only what a machine does to itself.
package flytest
