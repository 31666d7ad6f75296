package launch_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/cmd/mecha/launch"
)

// The test binary plays every part, for the processes of a run are all the same executable:
// `run` and `__guard` are the real ones, `sidecar` and `embedded` are fakes, `helper` is an
// app.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "run":
			os.Exit(runMain(os.Args[2:]))
		case "__guard":
			os.Exit(launch.GuardMain())
		case "sidecar":
			os.Exit(fakeSidecar(os.Args[2:]))
		case "embedded":
			linger("embedded node", false)
		case "helper":
			os.Exit(helper(os.Args[2:]))
		}
	}
	adoptOrphans()
	goleak.VerifyTestMain(m)
}

func runMain(args []string) int {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	flags := launch.BindFlags(fs)
	if err := fs.Parse(args); err != nil {
		fmt.Fprintln(os.Stderr, launch.FlagError(fs, err))
		return 2
	}
	o, err := flags.Options(fs.Args(), os.Stdin)
	if err == nil {
		err = launch.Run(context.Background(), o)
	}
	var exit *launch.ExitError
	switch {
	case errors.As(err, &exit):
		if exit.Err != nil {
			fmt.Fprintln(os.Stderr, exit.Err)
		}
		return exit.Code
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// fakeSidecar answers as a sidecar does at start and end. FAKE_SIDECAR changes its ways.
func fakeSidecar(args []string) int {
	fs := pflag.NewFlagSet("sidecar", pflag.ContinueOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	port := fs.String("dapr-http-port", "", "")
	appPort := fs.String("app-port", "", "")
	sockets := fs.String("unix-domain-socket", "", "")
	id := fs.String("app-id", "", "")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	fmt.Println("sidecar args:", strings.Join(args, " "))
	fmt.Println("sidecar env: DAPR_HOST_IP=" + os.Getenv("DAPR_HOST_IP") + " implicit=" + os.Getenv(launch.ImplicitEmbeddedEnv) +
		" node=" + os.Getenv(launch.EmbeddedNodeEnv))
	switch os.Getenv("FAKE_SIDECAR") {
	case "die":
		fmt.Println("cannot load component \"broken\"")
		return 3
	case "node":
		startNode()
	case "slow":
		time.Sleep(300 * time.Millisecond)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	over := make(chan int, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1.0/healthz/outbound", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("GET /v1.0/healthz", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("appid") != *id {
			w.WriteHeader(500)
			return
		}
		if *appPort != "" {
			c, err := net.Dial("tcp", "127.0.0.1:"+*appPort)
			if err != nil {
				w.WriteHeader(500)
				return
			}
			c.Close()
		}
		w.WriteHeader(204)
	})
	mux.HandleFunc("PUT /v1.0/metadata/{key}", func(w http.ResponseWriter, r *http.Request) {
		v, _ := io.ReadAll(r.Body)
		fmt.Printf("metadata %s=%s token=%s\n", r.PathValue("key"), v, r.Header.Get("dapr-api-token"))
		w.WriteHeader(204)
	})
	mux.HandleFunc("POST /exit/{code}", func(w http.ResponseWriter, r *http.Request) {
		var code int
		fmt.Sscan(r.PathValue("code"), &code)
		over <- code
	})
	l, err := net.Listen("tcp", "127.0.0.1:"+*port)
	if *sockets != "" {
		l, err = net.Listen("unix", *sockets+"/dapr-"+*id+"-http.socket")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go http.Serve(l, mux)
	fmt.Printf("sidecar %s pid %d serves\n", *id, os.Getpid())
	select {
	case <-term:
		fmt.Println("sidecar ends")
		return 0
	case code := <-over:
		return code
	}
}

// helper is an app; the first argument chooses what it does.
func helper(args []string) int {
	switch args[0] {
	case "exit": // exit CODE
		var code int
		fmt.Sscan(args[1], &code)
		return code
	case "env":
		for _, kv := range os.Environ() {
			fmt.Println("env " + kv)
		}
	case "streams":
		fmt.Fprint(os.Stdout, "out one\nout tw")
		fmt.Fprint(os.Stderr, "err one\n")
		fmt.Fprint(os.Stdout, "o\nout partial")
		fmt.Fprint(os.Stderr, "err partial")
	case "cat":
		n, _ := io.Copy(os.Stdout, os.Stdin)
		fmt.Printf("read %d bytes\n", n)
	case "trap": // trap CODE: ends on SIGTERM, slowly, with CODE
		term := make(chan os.Signal, 8)
		signal.Notify(term, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		fmt.Println("app ready")
		fmt.Printf("app got %v\n", <-term)
		time.Sleep(200 * time.Millisecond)
		select {
		case s := <-term:
			fmt.Printf("app got %v too\n", s)
		default:
		}
		fmt.Println("app ends")
		var code int
		fmt.Sscan(args[1], &code)
		return code
	case "linger":
		linger("app", false)
	case "stubborn":
		linger("app", true)
	case "sidecar-exit": // sidecar-exit CODE [THEN]: make the sidecar end, then linger or exit with THEN
		return endSidecar(args[1:])
	case "fork":
		return fork(args[1])
	case "listen": // listen: accept on APP_PORT
		l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("APP_PORT"))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		linger("app", false)
	}
	return 0
}

func endSidecar(args []string) int {
	resp, err := http.Post("http://127.0.0.1:"+os.Getenv("DAPR_HTTP_PORT")+"/exit/"+args[0], "", nil)
	if err == nil {
		resp.Body.Close()
	}
	if len(args) > 1 {
		time.Sleep(200 * time.Millisecond)
		var code int
		fmt.Sscan(args[1], &code)
		return code
	}
	linger("app", false)
	return 0
}

// linger says its number and stays, for a minute at most: a test that fails must not leave
// anything behind either.
func linger(what string, stubborn bool) {
	if stubborn {
		signal.Ignore(syscall.SIGTERM)
	}
	w := bufio.NewWriter(os.Stdout)
	fmt.Fprintf(w, "%s pid %d lingers\n", what, os.Getpid())
	w.Flush()
	time.Sleep(time.Minute)
	os.Exit(99)
}
