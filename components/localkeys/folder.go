package localkeys

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// maxKeyFile bounds a key file. The largest keys in use take a few kilobytes.
const maxKeyFile = 64 << 10

// FolderConfig configures a folder of key files.
type FolderConfig struct {
	// Path is the folder. Each file in it, or in a folder below it, is a key with the file's name:
	// PEM (PKCS#8, PKCS#1, SEC 1, PKIX), DER, a JSON Web Key, or the bytes of a symmetric key, plain
	// or as base64. A relative path starts at the sidecar's working directory.
	Path string `yaml:"path" required:"true"`
}

// DefaultFolderConfig is the configuration without any metadata.
func DefaultFolderConfig() *FolderConfig { return &FolderConfig{} }

// NewFolder opens a folder of keys. It is not touched before the first use.
func NewFolder(_ block.Env, c *FolderConfig) (block.Crypto, error) {
	return &provider{ring: &folder{path: c.Path}}, nil
}

// folder reads a key's file for every use: files change when keys do, and then at once. It goes
// through an os.Root, so that neither dots nor symbolic links lead out. The root is opened for
// every use too, as what mounts folders puts new ones in their place.
type folder struct{ path string }

func (f *folder) close() {}

// ping checks that the folder is one and can be read.
func (f *folder) ping(_ context.Context, op fault.Op) error {
	root, err := f.root(op)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	dir, err := root.Open(".")
	if err == nil {
		_, err = dir.ReadDir(1)
		_ = dir.Close() // read only: nothing can be lost
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fault.New(op, fault.Unavailable, "path %s cannot be read", f.path).Because(cause(err))
	}
	return nil
}

func (f *folder) root(op fault.Op) (*os.Root, error) {
	info, err := os.Stat(f.path)
	if err == nil && !info.IsDir() {
		return nil, fault.New(op, fault.Unavailable, "path %s is no folder; name the folder that holds the key files", f.path)
	}
	var root *os.Root
	if err == nil {
		root, err = os.OpenRoot(f.path)
	}
	if err != nil {
		return nil, fault.New(op, fault.Unavailable, "path %s", f.path).Because(cause(err))
	}
	return root, nil
}

func (f *folder) find(ctx context.Context, op fault.Op, name string) (*key, error) {
	// Only the name's own spelling: no dots, no empty parts, no slash at an end.
	if !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\\\x00") {
		return nil, fault.New(op, fault.NotFound, "%s cannot be the name of a key here: it takes the name of a file in the folder", shown(name))
	}
	root, err := f.root(op)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	raw, err := readKey(root, name)
	if err != nil {
		return nil, failure(op, name, err)
	}
	k, err := parse(name, raw)
	if err != nil {
		return nil, fault.New(op, fault.Invalid, "key %s", shown(name)).Because(err)
	}
	return k, nil
}

var errNoFile = errors.New("is no file")

func readKey(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // opening a pipe would wait for ever
		return nil, errNoFile
	}
	in, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }() // read only: nothing can be lost
	raw, err := io.ReadAll(io.LimitReader(in, maxKeyFile+1))
	if err == nil && len(raw) > maxKeyFile {
		err = errTooLarge
	}
	return raw, err
}

var errTooLarge = errors.New("has more than 64 KiB: that is no key")

// failure is the error of a key's file.
func failure(op fault.Op, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), isNotDir(err):
		return fault.New(op, fault.NotFound, "there is no key %s", shown(name))
	case errors.Is(err, fs.ErrPermission):
		return fault.New(op, fault.Denied, "key %s: may the sidecar's user read the file?", shown(name)).Because(cause(err))
	case errors.Is(err, errNoFile), errors.Is(err, errTooLarge):
		return fault.New(op, fault.Invalid, "key %s", shown(name)).Because(err)
	case strings.Contains(err.Error(), "escapes from parent"): // os.Root's words; there is no error value for it
		return fault.New(op, fault.Denied, "key %s: a link leads out of the folder", shown(name))
	}
	return fault.New(op, fault.Unavailable, "key %s", shown(name)).Because(cause(err))
}

// isNotDir tells of a name below a file, or one that is longer than a name can be.
func isNotDir(err error) bool {
	text := cause(err).Error()
	return strings.Contains(text, "not a directory") || strings.Contains(text, "name too long")
}

// cause is the system's reason alone: the path is named already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
