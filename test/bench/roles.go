package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
)

// roleEnv makes this program play one of its other parts.
const roleEnv = "MECHA_BENCH_ROLE"

// The roles.
const (
	roleHTTP  = "http-app" // echoes HTTP requests
	roleGRPC  = "grpc-app" // echoes gRPC messages
	roleRedis = "redis"    // the server of the rows on Redis, which is no role of this program
	roleLoad  = "load"     // runs jobs, and is the app that events are delivered to
)

// hello is the first line a role prints: where it listens.
type hello struct {
	Addr string `json:"addr"`
}

// playRole serves until standard input ends, which it does with the process that started us.
func playRole(role string) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(hello{l.Addr().String()}); err != nil {
		return 1
	}
	switch role {
	case roleHTTP:
		go serveHTTP(l, echo)
	case roleGRPC:
		go serveGRPC(l)
	case roleLoad:
		m := newMailbox()
		go serveHTTP(l, m.receive)
		return playLoad(json.NewDecoder(os.Stdin), out, m)
	default:
		fmt.Fprintf(os.Stderr, "%s=%q is not a role; unset it\n", roleEnv, role)
		return 2
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}
