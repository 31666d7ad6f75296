package pluggable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/block"
)

// asking bounds how long one socket is asked what it serves. Sockets are asked side by side, so
// it bounds the start of the sidecar too.
const asking = 5 * time.Second

// DefaultFolder is where sockets are looked for when nothing else is said.
func DefaultFolder() string { return filepath.Join(os.TempDir(), "dapr-components-sockets") }

// Finder knows the sockets of a folder and what they serve. It is safe for concurrent use.
type Finder struct {
	folder string
	log    *slog.Logger

	mu    sync.Mutex
	known map[string]found // by name in lower case
}

// found is what a socket serves.
type found struct {
	socket   string
	services []string
}

// Discover asks all sockets of a folder (empty: DefaultFolder) what they serve. One that does not
// answer, or not in this protocol, is left out with a warning; a folder that does not exist has
// none.
func Discover(ctx context.Context, folder string, log *slog.Logger) *Finder {
	if folder == "" {
		folder = DefaultFolder()
	}
	f := &Finder{folder: folder, log: log, known: map[string]found{}}
	sockets, err := socketsOf(folder)
	if err != nil {
		log.Warn("pluggable components: " + err.Error())
	}
	var wg sync.WaitGroup
	for name, path := range sockets {
		wg.Go(func() { f.ask(ctx, name, path) })
	}
	wg.Wait()
	return f
}

// Find is a fallback of block.Set: it serves types by socket name, in version v1. A socket that
// was not known yet is asked now, so a component process may start after its sidecar.
func (f *Finder) Find(typ, version string) (block.Part, bool) {
	kind, name, _ := strings.Cut(typ, ".")
	switch version {
	case "", "v0", "v1":
	default:
		return block.Part{}, false
	}
	switch block.Kind(kind) {
	case block.KindState, block.KindPubSub, block.KindSecret, block.KindBinding:
	default:
		return block.Part{}, false
	}
	name = strings.ToLower(name)
	at, ok := f.lookup(name)
	if !ok {
		if sockets, err := socketsOf(f.folder); err == nil && sockets[name] != "" {
			f.ask(context.Background(), name, sockets[name])
			at, ok = f.lookup(name)
		}
	}
	if !ok {
		return block.Part{}, false
	}
	return part(block.Kind(kind), name, at.socket, at.services)
}

func (f *Finder) lookup(name string) (found, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.known[name]
	return at, ok
}

// ask learns what a socket serves and says so.
func (f *Finder) ask(ctx context.Context, name, path string) {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	services, err := servicesOf(ctx, path)
	if err != nil {
		f.log.Warn(fmt.Sprintf("pluggable component '%s': cannot ask the socket %s what it serves: %v", name, path, err))
		return
	}
	services = slices.DeleteFunc(services, func(s string) bool { return !strings.HasPrefix(s, protocol) })
	if len(services) == 0 {
		f.log.Warn(fmt.Sprintf("pluggable component '%s': the socket %s serves no component", name, path))
		return
	}
	slices.Sort(services)
	for _, s := range services {
		f.log.Info(fmt.Sprintf("pluggable component '%s' was successfully registered for '%s'", name, s))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[name] = found{path, services}
}

// socketsOf lists the sockets of a folder by the name that types have, the file's without its
// extension in lower case.
func socketsOf(folder string) (map[string]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		info, err := os.Stat(path) // follows links, which some put there
		if err != nil || info.Mode()&fs.ModeSocket == 0 {
			continue
		}
		name := strings.ToLower(strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())))
		if _, dup := out[name]; !dup { // the first in the order of names
			out[name] = path
		}
	}
	return out, nil
}

// servicesOf asks a socket by gRPC reflection.
func servicesOf(ctx context.Context, socket string) ([]string, error) {
	s, err := dial(socket, "")
	if err != nil {
		return nil, err
	}
	defer s.end()
	// The components' own libraries offer v1alpha. The messages of both versions are the same.
	services, err := servicesBy(ctx, s.cc, "grpc.reflection.v1alpha.ServerReflection")
	if status.Code(err) == codes.Unimplemented {
		services, err = servicesBy(ctx, s.cc, reflection.ServerReflection_ServiceDesc.ServiceName)
	}
	return services, err
}

func servicesBy(ctx context.Context, cc *grpc.ClientConn, service string) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream
	defer cancel()
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+service+"/ServerReflectionInfo")
	if err != nil {
		return nil, err
	}
	ask := &reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_ListServices{}}
	if err := stream.SendMsg(ask); err != nil && !errors.Is(err, io.EOF) { // then RecvMsg tells more
		return nil, err
	}
	var answer reflection.ServerReflectionResponse
	if err := stream.RecvMsg(&answer); err != nil {
		return nil, err
	}
	var out []string
	for _, s := range answer.GetListServicesResponse().GetService() {
		out = append(out, s.GetName())
	}
	return out, nil
}
