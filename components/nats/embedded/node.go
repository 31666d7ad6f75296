package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/mecha-project/mecha/components/fault"
)

// NodeOptions say what a node serves and how.
type NodeOptions struct {
	DataDir    string        // empty: DefaultDir
	Durability Durability    // empty: what the directory has, os for a new one
	Linger     time.Duration // stay this long after the last client left; 0: for ever
	Level      slog.Level    // of the log
	// Status gets one line of JSON when the node is ready or has failed, for the client that
	// started it; nil: nobody reads it.
	Status io.Writer
	// Log gets the log; nil means node.log in the directory.
	Log io.Writer
}

// status is the line of NodeOptions.Status.
type status struct {
	Ready bool       `json:"ready,omitempty"`
	Busy  bool       `json:"busy,omitempty"` // another node serves the directory
	Code  fault.Code `json:"code,omitempty"`
	Error string     `json:"error,omitempty"`
}

// ErrBusy is returned by Run when another node serves the directory. That is no failure for a
// client: it connects to the other one.
var ErrBusy = errors.New("another node serves this directory")

// Run serves a directory until ctx ends or the last client has been gone for Linger; both
// return nil. ErrBusy means another node was faster. Other errors tell what is wrong with the
// directory and what to do.
func Run(ctx context.Context, o NodeOptions) error {
	err := run(ctx, &o)
	if err != nil {
		o.tell(status{Busy: errors.Is(err, ErrBusy), Code: fault.Of(err), Error: err.Error()})
	}
	return err
}

func (o *NodeOptions) tell(s status) {
	if o.Status == nil {
		return
	}
	line, _ := json.Marshal(s) // cannot fail
	_, _ = o.Status.Write(append(line, '\n'))
}

func run(ctx context.Context, o *NodeOptions) error {
	if err := o.Durability.check(); err != nil {
		return err
	}
	d, err := openDir(opNode, o.DataDir)
	if err != nil {
		return err
	}
	lock, err := d.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	durability, err := d.settle(o.Durability)
	if err != nil {
		return err
	}
	if o.Log == nil {
		f, err := openLog(d.file(logName))
		if err != nil {
			return fault.New(opNode, fault.Invalid, "cannot write %s; is the directory writable and the disk not full?", d.file(logName)).Because(err)
		}
		defer f.Close()
		o.Log = f
	}
	log := slog.New(slog.NewTextHandler(o.Log, &slog.HandlerOptions{Level: o.Level})).With("pid", os.Getpid())
	start := time.Now()
	trouble := make(chan struct{}, 1)
	srv, err := startServer(d, durability, log, trouble)
	if err != nil {
		log.Error("cannot start", "error", err)
		return err
	}
	defer stopServer(srv)
	path, err := d.claimSocket()
	if err != nil {
		return err
	}
	l, err := listenPrivately(path)
	if err != nil {
		return fault.New(opNode, fault.Invalid, "cannot listen on %s", path).Because(err)
	}
	g := newGate(l, o.Linger, srv.InProcessConn, newRoom(d, srv, log).sent)
	defer g.close()
	log.Info("ready", "dir", string(d), "socket", path, "durability", string(durability), "took", time.Since(start))
	o.tell(status{Ready: true})
	for {
		select {
		case <-ctx.Done():
			log.Info("leaving: told to")
			return nil
		case <-g.left:
			log.Info("leaving: no clients", "linger", o.Linger)
			return nil
		case <-trouble:
			if err := sick(srv, d); err != nil {
				log.Error("leaving: a fresh start is needed", "error", err)
				return err
			}
		}
	}
}

// sick tells whether a stream could not be written. The library then leaves publishers without
// an answer until the stream is opened again, room or no room. The node ends instead: calls
// fail at once, clients start another node as long as they need one, and that one tells them
// what is wrong until the disk is writable again.
func sick(srv *server.Server, d dir) error {
	for range 10 { // it reports the error before it notes it
		if h := srv.Healthz(&server.HealthzOptions{}); h.Error != "" || len(h.Errors) > 0 {
			why := h.Error
			for _, e := range h.Errors {
				why += e.Error
			}
			return fault.New(opNode, fault.Unavailable, "the data in %s cannot be written: %s", d, why)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// lockPatience is how long a node waits for the lock of one that is about to leave.
const lockPatience = 5 * time.Second

// lock takes the directory. While another process holds it and answers, that is ErrBusy.
func (d dir) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(d.file(lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.New(opNode, fault.Invalid, "cannot write in the data directory %s; is it writable and the disk not full?", d).Because(err)
	}
	for deadline := time.Now().Add(lockPatience); ; {
		got, err := tryLock(f)
		if err != nil {
			_ = f.Close()
			return nil, fault.New(opNode, fault.Invalid, "cannot lock %s; the file system must support locks (network ones often do not)", d.file(lockName)).Because(err)
		}
		if got {
			_ = f.Truncate(0)
			_, _ = f.WriteAt([]byte(fmt.Sprintln(os.Getpid())), 0) // for people only
			return f, nil
		}
		if c, err := net.DialTimeout("unix", d.socket(), time.Second); err == nil {
			_ = c.Close()
			_ = f.Close()
			return nil, ErrBusy
		}
		if time.Now().After(deadline) {
			holder, _ := io.ReadAll(io.LimitReader(f, 20))
			_ = f.Close()
			return nil, fault.New(opNode, fault.Unavailable, "%s is locked by process %s, which does not answer; end that process or give another --data-dir", d, strings.TrimSpace(string(holder)))
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fault.Wrap(opNode, fault.Canceled, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// startServer starts the library without any listener and checks that it recovered all that
// the directory holds.
func startServer(d dir, durability Durability, log *slog.Logger, trouble chan struct{}) (*server.Server, error) {
	if err := d.probe(); err != nil {
		return nil, err
	}
	opts := &server.Options{
		ServerName: "mecha-embedded",
		DontListen: true,
		NoSigs:     true,
		JetStream:  true,
		StoreDir:   string(d),
		SyncAlways: durability == DurabilityStrict,
		MaxPayload: MaxPayload,
		// Keys and topics travel in subjects, escaped; the default of 4 KiB would refuse long ones.
		MaxControlLine: 16 << 10,
		// A client may be handed many large messages at once; dropping its connection at the
		// default of 64 MiB would only make it ask again.
		MaxPending:         256 << 20,
		JetStreamMaxMemory: 64 << 20, // nothing of ours is kept in memory
		// A stream's maxBytes is a bound for us and a reservation for the library, which by
		// default refuses what the disk has no room for today: a laptop with 900 MB free could not
		// start. A disk that does fill up is noticed when it does.
		JetStreamMaxStore:      1 << 50,
		NoSystemAccount:        true, // spares its periodic statistics
		DisableJetStreamBanner: true,
		JetStreamLimits:        server.JSLimitOpts{MaxBatchInflightPerStream: 1000, MaxBatchInflightTotal: 10000},
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fault.New(opNode, fault.Internal, "the server library refuses its options").Because(err)
	}
	nlog := &natsLog{log: log.With("from", "nats-server"), trouble: trouble}
	srv.SetLoggerV2(nlog, log.Enabled(context.Background(), slog.LevelDebug), false, false)
	srv.Start()
	if srv.ReadyForConnections(time.Minute) && nlog.failure() == "" && srv.JetStreamEnabled() {
		if err = recovered(d, srv, log); err == nil {
			return srv, nil
		}
	} else {
		err = fault.New(opNode, fault.Unavailable, "the data in %s cannot be served: %s; is the disk full or the store damaged?", d, nlog.failure())
	}
	stopServer(srv)
	return nil, err
}

func stopServer(srv *server.Server) {
	srv.Shutdown()
	srv.WaitForShutdown()
}

// probe writes a page before the library gets to find out: its own words for a full disk are
// many and late.
func (d dir) probe() error {
	f, err := os.CreateTemp(string(d), "probe.*")
	if err == nil {
		_, err = f.Write(make([]byte, 64<<10))
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return fault.New(opNode, fault.Unavailable, "cannot write in the data directory %s; is it writable and the disk not full?", d).Because(err)
	}
	return nil
}

// recovered refuses a directory with a stream the library left out: it only warns, and a
// client would then make the stream anew, empty. A stream without any data is no loss: a
// crash while it was made leaves such a thing.
func recovered(d dir, srv *server.Server, log *slog.Logger) error {
	info, err := srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return fault.New(opNode, fault.Internal, "the server library does not report its streams").Because(err)
	}
	known := map[string]bool{}
	for _, a := range info.AccountDetails {
		for _, s := range a.Streams {
			known[filepath.Join(a.Name, s.Name)] = true
			if s.State.Lost != nil && len(s.State.Lost.Msgs) > 0 {
				log.Error("messages are lost: the store is damaged", "stream", s.Name, "messages", len(s.State.Lost.Msgs))
			}
		}
	}
	streams, err := filepath.Glob(d.file(filepath.Join(storeName, "*", "streams", "*")))
	if err != nil {
		return fault.New(opNode, fault.Internal, "cannot list the streams in %s", d).Because(err)
	}
	for _, path := range streams {
		name := filepath.Base(path)
		account := filepath.Base(filepath.Dir(filepath.Dir(path)))
		if !strings.HasPrefix(name, ".") && !known[filepath.Join(account, name)] && holdsData(path) {
			return fault.New(opNode, fault.Lost, "the store is damaged: %s holds data which cannot be recovered (%s has the details); restore the directory from a copy, or move this stream's directory away to go on without it", path, d.file(logName))
		}
	}
	return nil
}

func holdsData(stream string) bool {
	found := false
	_ = filepath.WalkDir(filepath.Join(stream, "msgs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".blk" {
			return nil // what cannot be read is not data either
		}
		if info, err := e.Info(); err == nil && info.Size() > 0 {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	return found
}
