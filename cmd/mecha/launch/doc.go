// Package launch is everything behind `mecha run`: it starts one or more apps, each with
// its own sidecar, shows their logs, passes exit codes on, and leaves no process behind.
//
// It speaks Dapr's words, so that `dapr run` command lines and dapr.yaml run templates work
// as they are. What a sidecar does is no business of this package; it only starts the same
// binary with the subcommand `sidecar` and daprd's flags, and talks to it over its HTTP API
// (health, metadata).
//
// # Where to start
//
// Flags (flags.go) and the run template (template.go) both end in an Options, a list of App
// values that are fully resolved. Run (run.go) starts them, and live.go is the life of one.
//
// # Who owns the processes
//
// The processes belong to a guard, a small process of the same binary (subcommand
// `__guard`, GuardMain), because a process that is killed with SIGKILL cannot clean up:
//
//		mecha run ──► guard ──► sidecar
//		                   └──► app ──► whatever the app starts
//
//	  - The guard reads its orders from a pipe whose other end lives only in `mecha run`. When
//	    that end closes, however it came to close, the guard ends everything below itself.
//	  - On Linux the guard is a child subreaper: a grandchild that called setsid and forked
//	    twice becomes the guard's child, not init's, and is found by walking /proc.
//	  - `mecha run` is a subreaper as well. When the guard is killed, what was below it falls
//	    to `mecha run`, which ends it.
//	  - Apps and sidecars ask the kernel to be killed when the guard dies, for the case that
//	    `mecha run` and the guard are killed at the same instant. A grandchild can outlive
//	    that one case; only a PID namespace or a delegated cgroup could prevent it.
//
// The embedded node (`mecha embedded`), which a sidecar starts for all sidecars of the user,
// is the one process that is left alone: it leaves by itself after its last client. It is
// known by EmbeddedNodeEnv in its environment together with being this very executable.
//
// On other Unix systems there is no subreaper and the guard ends process groups; on Windows
// there is no guard, and a job object does its work.
//
// # Sessions and the terminal
//
// The guard and every process it starts have a session of their own. So Ctrl-C reaches
// `mecha run` alone, once, and apps are told with SIGTERM in the right order. An app can
// still read the terminal: job control only stops readers whose controlling terminal it is.
// Such an app has no /dev/tty, and Ctrl-Z stops `mecha run` but not the app. When
// `mecha run` itself is started in the background, the app gets an empty stdin, for it
// would otherwise fight with the shell for every line.
package launch
