// Package localstorage keeps files for the app in a folder of this host.
//
// No name leads out of the folder, by dots or by symbolic links: everything goes through an
// os.Root. Here are the configuration and the folder; files.go is what is done in it.
package localstorage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Files in a folder of this host."

// Backend lists the parts: an output binding.
func Backend() block.Backend {
	return block.Backend{Name: "localstorage", Doc: doc, Parts: []block.Part{block.BindingPart("localstorage", doc, DefaultConfig, New)}}
}

// Config configures the folder.
type Config struct {
	// RootPath is the folder, which is made if it does not exist. A relative path starts at the
	// sidecar's working directory. Folders of the system are refused.
	RootPath string `yaml:"rootPath" required:"true"`
}

// DefaultConfig is the configuration with nothing set.
func DefaultConfig() *Config { return &Config{} }

// Validate judges the path. It looks at no folder.
func (c *Config) Validate() error {
	if c.RootPath == "" {
		return nil // missing, which is told already
	}
	abs, err := filepath.Abs(c.RootPath)
	if err != nil {
		return conf.Bad("rootPath", "%v", err)
	}
	if ofSystem(abs) {
		return conf.Bad("rootPath", "%s is a folder of the system; name one of your own, such as /var/lib/orders", abs)
	}
	return nil
}

// Folders nobody keeps an app's files in, with what is in them and alone.
var (
	systemTrees   = []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run/secrets", "/sbin", "/sys", "/usr/bin", "/usr/lib", "/usr/sbin", "/var/run/secrets"}
	systemFolders = []string{"/", "/home", "/opt", "/root", "/run", "/srv", "/usr", "/usr/local", "/var", "/var/lib", "/var/run"}
)

// ofSystem tells whether a folder is the system's.
func ofSystem(abs string) bool {
	if runtime.GOOS == "windows" {
		windows := os.Getenv("SystemRoot")
		return filepath.Dir(abs) == abs || windows != "" && within(strings.ToLower(abs), strings.ToLower(windows))
	}
	// Anybody's keys of SSH, wherever the home is.
	if slices.Contains(strings.Split(abs, string(filepath.Separator)), ".ssh") {
		return true
	}
	return slices.Contains(systemFolders, abs) || slices.ContainsFunc(systemTrees, func(tree string) bool { return within(abs, tree) })
}

func within(path, tree string) bool {
	return path == tree || strings.HasPrefix(path, tree+string(filepath.Separator))
}

var _ block.Output = (*output)(nil)

// output is one folder.
type output struct {
	path string

	mu     sync.Mutex
	closed bool     // guarded by mu
	root   *os.Root // guarded by mu; nil before the first use
	at     string   // guarded by mu; root's path, absolute and without links
}

// New makes the component. The folder is opened at the first use.
func New(_ block.Env, c *Config) (block.Component, error) {
	if c.RootPath == "" {
		return nil, fault.New("localstorage.New", fault.Invalid, "rootPath is required: name the folder for the files")
	}
	return &output{path: c.RootPath}, nil
}

// folder opens the folder, if that has not been done.
func (o *output) folder(ctx context.Context, op fault.Op) (*os.Root, string, error) {
	if err := ctx.Err(); err != nil {
		return nil, "", fault.Wrap(op, fault.Canceled, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return nil, "", fault.New(op, fault.Unavailable, "the folder %s is closed", o.path).WithSent(fault.SentNever)
	case o.root != nil:
		return o.root, o.at, nil
	}
	root, at, err := open(o.path)
	if err != nil {
		return nil, "", fault.New(op, fault.Unavailable, "rootPath %s", o.path).WithSent(fault.SentNever).Because(cause(err))
	}
	o.root, o.at = root, at
	return root, at, nil
}

// open makes the folder and opens it, unless it is, where its links lead, one of the system.
func open(path string) (*os.Root, string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, "", err
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return nil, "", err
	}
	at, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, "", err
	}
	if ofSystem(at) {
		return nil, "", errors.New("leads to " + at + ", a folder of the system")
	}
	root, err := os.OpenRoot(at)
	return root, at, err
}

// cause is the system's reason alone: names are told anyway, as the app knows them.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Ping checks that the folder can be opened.
func (o *output) Ping(ctx context.Context) error {
	_, _, err := o.folder(ctx, "localstorage.Ping")
	return err
}

// Close closes the folder. Operations in progress may fail.
func (o *output) Close(context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.root == nil {
		return nil
	}
	err := o.root.Close()
	o.root = nil
	return err
}
