// Command pluggable-go is an output binding as a process of its own: Dapr's component protocol over
// a file of lines.
//
//	pluggable-go SOCKET
//
// It serves the type bindings.<name of the socket>. Each component resource that uses it names a
// file (metadata "path"); "create" appends the request's data to it as a line, "list" gives its
// lines as a JSON array.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	components "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pluggable-go SOCKET")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "pluggable-go:", err)
		os.Exit(1)
	}
}

func run(socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier run
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	components.RegisterOutputBindingServer(s, &journal{files: map[string]string{}})
	reflection.Register(s) // by which a sidecar learns what is served
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() { <-stop; s.GracefulStop() }()
	fmt.Println("serving", socket)
	return s.Serve(l)
}

// journal is the binding. One process serves all components of its type.
type journal struct {
	components.UnimplementedOutputBindingServer
	mu    sync.Mutex        // guards files, and the files' contents
	files map[string]string // by component name
}

// component is the name of the component that a call is for.
func component(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(md["x-component-instance"], "")
}

// Init takes a component's metadata. A sidecar that has found us again calls it again.
func (j *journal) Init(ctx context.Context, in *components.OutputBindingInitRequest) (*components.OutputBindingInitResponse, error) {
	path := in.GetMetadata().GetProperties()["path"]
	if path == "" {
		return nil, status.Error(codes.InvalidArgument, `metadata "path" is required: the file to append to`)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.files[component(ctx)] = path
	return &components.OutputBindingInitResponse{}, nil
}

// Ping says that we are there.
func (j *journal) Ping(context.Context, *components.PingRequest) (*components.PingResponse, error) {
	return &components.PingResponse{}, nil
}

// ListOperations says what Invoke can do.
func (j *journal) ListOperations(context.Context, *components.ListOperationsRequest) (*components.ListOperationsResponse, error) {
	return &components.ListOperationsResponse{Operations: []string{"create", "list"}}, nil
}

// Invoke performs an operation.
func (j *journal) Invoke(ctx context.Context, in *components.InvokeRequest) (*components.InvokeResponse, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	path, ok := j.files[component(ctx)]
	if !ok {
		return nil, status.Error(codes.FailedPrecondition, "Init was not called")
	}
	switch in.GetOperation() {
	case "create":
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		_, err = f.Write(append(in.GetData(), '\n'))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return &components.InvokeResponse{}, nil
	case "list":
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		lines := strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
		data, err := json.Marshal(append([]string{}, lines...))
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		return &components.InvokeResponse{Data: data}, nil
	}
	return nil, status.Errorf(codes.InvalidArgument, "operation %q is neither create nor list", in.GetOperation())
}
