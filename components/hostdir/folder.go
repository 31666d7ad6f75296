package hostdir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// folder is the registry's directory. It has no state of its own; every method looks at
// the file system afresh, so a folder that vanished is made again.
type folder struct {
	path string
	// made lists the directories we create and demand to be private, outermost first.
	// Their common parent is only checked.
	made []string
}

// RuntimeDir is the folder under which Mecha's processes of one user meet on this host:
// $MECHA_RUNTIME_DIR, else $XDG_RUNTIME_DIR, else mecha-<uid> in the system's temporary folder.
func RuntimeDir() string {
	if dir := os.Getenv("MECHA_RUNTIME_DIR"); dir != "" {
		return dir
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return dir
	}
	if uid := os.Getuid(); uid >= 0 {
		return filepath.Join(os.TempDir(), "mecha-"+strconv.Itoa(uid))
	}
	return filepath.Join(os.TempDir(), "mecha") // Windows: the temporary folder is the user's own
}

func newFolder(dir string) *folder {
	if dir != "" {
		dir = filepath.Clean(dir)
		return &folder{path: dir, made: []string{dir}}
	}
	root := RuntimeDir()
	if abs, err := filepath.Abs(root); err == nil {
		root = abs
	}
	mecha := filepath.Join(root, "mecha")
	registry := filepath.Join(mecha, "registry")
	return &folder{path: registry, made: []string{root, mecha, registry}}
}

// prepare makes the folder where it is missing and checks that nobody else can write into
// it or replace it: a stranger's entry would be a stranger receiving our calls.
func (f *folder) prepare(op fault.Op) error {
	if info, err := os.Lstat(f.path); err == nil && info.IsDir() && checkPrivate(info) == nil {
		return nil // the usual case; the way to it was checked when it was made
	}
	if err := f.make(); err != nil {
		return &fault.Error{Op: op, Code: fault.Unavailable, Sent: fault.SentNever, Err: err,
			Msg: fmt.Sprintf("registry folder %s cannot be used; set MECHA_RUNTIME_DIR to a folder of your own", f.path)}
	}
	return nil
}

func (f *folder) make() error {
	if err := checkParent(filepath.Dir(f.made[0])); err != nil {
		return err
	}
	for i, dir := range f.made {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		info, err := os.Lstat(dir)
		if err != nil {
			return err
		}
		if i == 0 && len(f.made) > 1 {
			// The runtime dir itself may be readable by others, or a link, but nobody else
			// may write into it or turn the link elsewhere.
			if err := checkOwner(info); err != nil {
				return fmt.Errorf("%s %w", dir, err)
			}
			if err := checkParent(dir); err != nil {
				return err
			}
			continue
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory (%s)", dir, info.Mode().Type())
		}
		if err := checkPrivate(info); err != nil {
			return fmt.Errorf("%s %w", dir, err)
		}
	}
	return nil
}

// Bounds of one listing. More names than these are a folder gone wrong.
const (
	maxNames   = 1 << 16
	namesBatch = 256
	draftAge   = time.Minute // a draft lives for less than a millisecond
)

// list names the entries starting with prefix.
func (f *folder) list(ctx context.Context, prefix string, warned *warnings) ([]string, error) {
	d, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var out []string
	for seen := 0; ; {
		names, err := d.Readdirnames(namesBatch)
		for _, name := range names {
			switch {
			case entryFile.MatchString(name):
				if strings.HasPrefix(name, prefix) {
					out = append(out, name)
				}
			case draftFile.MatchString(name):
				f.removeDraft(name)
			default:
				warned.once(name, "foreign file in the registry folder ignored", errors.New("its name is not one of ours"))
			}
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if seen += len(names); seen > maxNames {
			return nil, fmt.Errorf("%s holds more than %d files; remove what does not belong there", f.path, maxNames)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// errDead says that an entry's process is gone.
var errDead = errors.New("the instance is gone")

// read gives the entry in a file if its process lives. The file of a dead one is removed.
// Files with strange content are left alone: somebody should see them.
func (f *folder) read(name string) (entry, error) {
	path := filepath.Join(f.path, name)
	file, err := openPlain(path)
	if err != nil {
		return entry{}, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxEntryBytes+1))
	if err != nil {
		return entry{}, err
	}
	e, err := parseEntry(data)
	if err != nil {
		return entry{}, err
	}
	dead, err := tryShared(file)
	if err != nil {
		return entry{}, err
	}
	if dead {
		// The name was used once only, so this cannot remove a successor.
		_ = os.Remove(path)
		return entry{}, errDead
	}
	return e, nil
}

// removeDraft removes a draft whose writer died before it was renamed.
func (f *folder) removeDraft(name string) {
	path := filepath.Join(f.path, name)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()) < draftAge {
		return
	}
	file, err := openPlain(path)
	if err != nil {
		return
	}
	defer file.Close()
	if free, err := tryShared(file); err == nil && free {
		_ = os.Remove(path)
	}
}

// announce writes self under a new name and returns the file with its lock held.
func (f *folder) announce(self block.Instance) (*heldFile, error) {
	data, err := json.Marshal(newEntry(self, time.Now().UnixNano(), os.Getpid()))
	if err != nil {
		return nil, err
	}
	// A cleaner that mistakes our draft for an old one (the clock jumped) makes one try
	// fail; it cannot do so for ever.
	for range 3 {
		var h *heldFile
		if h, err = f.write(data, entryName(self.Name())); err == nil {
			return h, nil
		}
	}
	return nil, fmt.Errorf("write registry entry: %w", err)
}

func (f *folder) write(data []byte, name string) (*heldFile, error) {
	draft := filepath.Join(f.path, draftName())
	file, err := createPlain(draft)
	if err != nil {
		return nil, err
	}
	h := &heldFile{path: filepath.Join(f.path, name), f: file}
	if err = lockExclusive(file); err == nil {
		if _, err = file.Write(data); err == nil {
			err = os.Rename(draft, h.path)
		}
	}
	if err != nil {
		_ = os.Remove(draft)
		_ = file.Close()
		return nil, err
	}
	return h, nil
}
