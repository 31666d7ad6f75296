package localstorage

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// fileName is the metadata entry of a request that names the file, or the folder to list.
const fileName = "fileName"

// The operations.
const (
	create = "create"
	get    = "get"
	list   = "list"
	remove = "delete"
)

// Operations are what can be done with files.
func (o *output) Operations() []string { return []string{create, get, list, remove} }

// Invoke does something with one file, or lists them.
func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	op := fault.Op("localstorage." + r.Operation)
	root, at, err := o.folder(ctx, op)
	if err != nil {
		return nil, err
	}
	switch r.Operation {
	case create:
		return write(op, root, r)
	case get:
		return read(op, root, r)
	case list:
		return names(ctx, op, root, at, r)
	case remove:
		return nil, erase(op, root, r)
	}
	return nil, fault.New("localstorage.Invoke", fault.Unsupported, "unsupported operation %s; known are create, get, list, delete", r.Operation)
}

// inside is a name below the root: dots do not lead out of it.
func inside(name string) string {
	return strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(name)), "/")
}

// named is the file that a request is about.
func named(op fault.Op, r block.BindingRequest) (string, error) {
	given := r.Metadata[fileName]
	switch name := inside(given); {
	case given == "":
		return "", fault.New(op, fault.Invalid, "the metadata entry fileName is missing: name the file")
	case name == "":
		return "", fault.New(op, fault.Invalid, "fileName %q names the folder itself; name a file", given)
	case strings.HasPrefix(path.Base(name), unfinished):
		return "", fault.New(op, fault.Invalid, "fileName %q: names that begin with %s are the binding's own", given, unfinished)
	default:
		return name, nil
	}
}

// unfinished begins the names of files that are being written.
const unfinished = ".mecha-writing-"

// write stores a file. It has its name when it is complete, so nobody reads half of it.
func write(op fault.Op, root *os.Root, r block.BindingRequest) (*block.BindingAnswer, error) {
	if r.Metadata[fileName] == "" {
		r.Metadata = map[string]string{fileName: uuid.NewString()}
	}
	name, err := named(op, r)
	if err != nil {
		return nil, err
	}
	answer, err := json.Marshal(struct {
		FileName string `json:"fileName"`
	}{filepath.FromSlash(name)})
	if err != nil {
		return nil, fault.Wrap(op, fault.Internal, err)
	}
	folder := path.Dir(name)
	if err := root.MkdirAll(folder, 0o755); err != nil {
		return nil, failure(op, name, err)
	}
	if info, err := root.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, fault.New(op, fault.Invalid, "%s is there and is no file", name)
	}
	draft := path.Join(folder, unfinished+uuid.NewString())
	err = fill(root, draft, content(r.Data))
	if err == nil {
		err = root.Rename(draft, name)
	}
	if err != nil {
		_ = root.Remove(draft) // it may not be there
		return nil, failure(op, name, err)
	}
	return &block.BindingAnswer{Data: answer}, nil
}

// fill writes a new file down to the disk.
func fill(root *os.Root, name string, data []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// content is what the data say: a JSON string is its text, and what is base64 is what it encodes.
func content(data []byte) []byte {
	if len(data) > 0 && data[0] == '"' {
		var text string
		if json.Unmarshal(data, &text) == nil {
			data = []byte(text)
		}
	}
	if raw, err := base64.StdEncoding.DecodeString(string(data)); err == nil {
		return raw
	}
	return data
}

// maxFile bounds what is read into memory.
const maxFile = 1 << 30

func read(op fault.Op, root *os.Root, r block.BindingRequest) (*block.BindingAnswer, error) {
	name, err := named(op, r)
	if err != nil {
		return nil, err
	}
	info, err := root.Stat(name)
	switch {
	case err != nil:
		return nil, failure(op, name, err)
	case !info.Mode().IsRegular(): // opening a pipe would wait for ever
		return nil, fault.New(op, fault.Invalid, "%s is no file", name)
	case info.Size() > maxFile:
		return nil, fault.New(op, fault.TooLarge, "%s has %d bytes; files of more than %d are not read", name, info.Size(), maxFile)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, failure(op, name, err)
	}
	defer func() { _ = f.Close() }() // read only: nothing can be lost
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, failure(op, name, err)
	}
	return &block.BindingAnswer{Data: data}, nil
}

// names lists the files in a folder and in those below it, by absolute path.
func names(ctx context.Context, op fault.Op, root *os.Root, at string, r block.BindingRequest) (*block.BindingAnswer, error) {
	folder := inside(r.Metadata[fileName])
	if folder == "" {
		folder = "."
	}
	info, err := root.Stat(folder)
	switch {
	case err != nil:
		return nil, failure(op, folder, err)
	case !info.IsDir():
		return nil, fault.New(op, fault.Invalid, "%s is no folder; list takes the name of one, or none for all files", folder)
	}
	found := []string{}
	err = fs.WalkDir(root.FS(), folder, func(name string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile
		case err != nil:
			return err
		case d.Type().IsRegular() && !strings.HasPrefix(d.Name(), unfinished):
			found = append(found, filepath.Join(at, filepath.FromSlash(name)))
		}
		return nil
	})
	if err != nil {
		return nil, failure(op, folder, err)
	}
	data, err := json.Marshal(found)
	if err != nil {
		return nil, fault.Wrap(op, fault.Internal, err)
	}
	return &block.BindingAnswer{Data: data}, nil
}

func erase(op fault.Op, root *os.Root, r block.BindingRequest) error {
	name, err := named(op, r)
	if err != nil {
		return err
	}
	info, err := root.Lstat(name)
	switch {
	case err != nil:
		return failure(op, name, err)
	case info.IsDir():
		return fault.New(op, fault.Invalid, "%s is a folder; delete removes files", name)
	}
	if err := root.Remove(name); err != nil {
		return failure(op, name, err)
	}
	return nil
}

// failure is the error of something that could not be done with a file.
func failure(op fault.Op, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(op, fault.NotFound, "file not found: %s", name)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(op, fault.Denied, "%s: may the sidecar's user do that?", name).Because(cause(err))
	case errors.Is(err, os.ErrClosed):
		return fault.New(op, fault.Unavailable, "the folder is closed")
	case fault.Of(err) == fault.Canceled, fault.Of(err) == fault.Deadline:
		return fault.Wrap(op, fault.Canceled, err)
	case strings.Contains(err.Error(), "escapes from parent"): // os.Root's words; there is no error value for it
		return fault.New(op, fault.Denied, "%s: a link leads out of rootPath", name)
	}
	return fault.New(op, fault.Unavailable, "%s", name).Because(cause(err))
}
