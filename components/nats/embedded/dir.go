package embedded

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
)

// What a node's directory holds:
//
//	FORMAT       version of this layout and the durability, two lines of text
//	lock         held exclusively while a node runs; names its process
//	node.sock    the socket, when the path is short enough for one
//	node.socket  else: where the socket is
//	node.log     what nodes had to say, bounded
//	jetstream/   the server library's files
const (
	formatName  = "FORMAT"
	lockName    = "lock"
	socketName  = "node.sock"
	recordName  = "node.socket"
	logName     = "node.log"
	storeName   = "jetstream"
	formatKnown = 1
)

// maxSocketPath is the longest path a Unix socket may have everywhere: sun_path holds 104
// bytes on macOS and 108 on Linux, with the final zero.
const maxSocketPath = 100

// DefaultDir is the directory used when none is given: ~/.mecha/embedded.
func DefaultDir() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.New(opNode, fault.Invalid, "no home directory for the embedded node's data; give --data-dir").Because(err)
	}
	return filepath.Join(home, ".mecha", "embedded"), nil
}

// dir is a node's directory: absolute, links resolved, existing.
type dir string

// openDir creates the directory if needed. The result is the same for every spelling of it.
func openDir(op fault.Op, path string) (dir, error) {
	if path == "" {
		var err error
		if path, err = DefaultDir(); err != nil {
			return "", err
		}
	}
	abs, err := filepath.Abs(path)
	if err == nil {
		if err = os.MkdirAll(abs, 0o700); err == nil {
			abs, err = filepath.EvalSymlinks(abs)
		}
	}
	if err != nil {
		return "", fault.New(op, fault.Invalid, "data directory %s of the embedded node cannot be used; give another --data-dir or repair it", path).Because(err)
	}
	return dir(abs), nil
}

func (d dir) file(name string) string { return filepath.Join(string(d), name) }

// format is what FORMAT says.
type format struct {
	version    int
	durability Durability
}

// readFormat returns nil when there is no FORMAT yet.
func (d dir) readFormat(op fault.Op) (*format, error) {
	text, err := os.ReadFile(d.file(formatName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(op, fault.Invalid, "cannot read %s", d.file(formatName)).Because(err)
	}
	f, err := parseFormat(string(text))
	if err != nil {
		return nil, fault.New(op, fault.Invalid, "%s is damaged; restore it, or move the directory away", d.file(formatName)).Because(err)
	}
	if f.version > formatKnown {
		return nil, fault.New(op, fault.Unsupported,
			"%s has format %d, this version of mecha knows formats up to %d; use the newer mecha that wrote it, or another --data-dir", d, f.version, formatKnown)
	}
	return &f, nil
}

// parseFormat reads "key value" lines. Unknown keys belong to newer formats and are left alone.
func parseFormat(text string) (format, error) {
	var f format
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		switch key {
		case "format":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return format{}, fmt.Errorf("format is %q, want a number", value)
			}
			f.version = n
		case "durability":
			f.durability = Durability(value)
		}
	}
	if f.version == 0 {
		return format{}, errors.New("it has no format line")
	}
	if f.version == formatKnown && f.durability != DurabilityOS && f.durability != DurabilityStrict {
		return format{}, fmt.Errorf("durability is %q, want os or strict", string(f.durability))
	}
	return f, lines.Err()
}

// settle checks the directory against the durability asked for ("": any) and returns the one
// in force; a directory without FORMAT gets one. Only the holder of the lock may call it.
func (d dir) settle(asked Durability) (Durability, error) {
	f, err := d.readFormat(opNode)
	if err != nil {
		return "", err
	}
	if f != nil {
		return f.durability, f.accepts(opNode, d, asked)
	}
	if _, err := os.Stat(d.file(storeName)); err == nil {
		return "", fault.New(opNode, fault.Invalid, "%s holds data but no FORMAT, so who wrote it is unknown; restore FORMAT or give another --data-dir", d)
	}
	if asked == "" {
		asked = DurabilityOS
	}
	text := fmt.Sprintf("format %d\ndurability %s\n", formatKnown, asked)
	if err := d.replace(formatName, text); err != nil {
		return "", fault.New(opNode, fault.Invalid, "cannot write %s; is the directory writable and the disk not full?", d.file(formatName)).Because(err)
	}
	return asked, nil
}

func (f *format) accepts(op fault.Op, d dir, asked Durability) error {
	if asked == "" || asked == f.durability {
		return nil
	}
	return fault.New(op, fault.Invalid, "%s was created with durability %s and keeps it; %s was asked for: drop the setting or use another --data-dir", d, f.durability, asked)
}

// replace writes a small file so that a crash leaves the old one or the new one.
func (d dir) replace(name, text string) error {
	tmp, err := os.CreateTemp(string(d), name+".*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), d.file(name))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// socket is where clients find the node: what the record says, else node.sock.
func (d dir) socket() string {
	if text, err := os.ReadFile(d.file(recordName)); err == nil {
		if p := strings.TrimSpace(string(text)); filepath.IsAbs(p) {
			return p
		}
	}
	return d.file(socketName)
}

// claimSocket decides where the socket is to be, records it if it is elsewhere than node.sock,
// and removes a dead one. Only the holder of the lock may call it.
func (d dir) claimSocket() (string, error) {
	path := d.file(socketName)
	if len(path) > maxSocketPath {
		run, err := runtimeDir()
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256([]byte(d))
		path = filepath.Join(run, "node-"+hex.EncodeToString(sum[:8])+".sock")
		if len(path) > maxSocketPath {
			return "", fault.New(opNode, fault.Invalid, "no place for a socket: %s is longer than the %d bytes a socket's path may have; set XDG_RUNTIME_DIR or TMPDIR to a shorter one", path, maxSocketPath)
		}
		if err := d.replace(recordName, path+"\n"); err != nil {
			return "", fault.New(opNode, fault.Invalid, "cannot record the socket in %s", d).Because(err)
		}
	} else if err := os.Remove(d.file(recordName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(opNode, fault.Invalid, "cannot remove an old %s", d.file(recordName)).Because(err)
	}
	// The lock is ours, so whoever made an existing socket is gone.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(opNode, fault.Invalid, "cannot remove the dead socket %s", path).Because(err)
	}
	return path, nil
}

// runtimeDir is a directory with a short name which only this user can enter.
func runtimeDir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	name := "mecha"
	if base == "" {
		base, name = os.TempDir(), "mecha-"+userTag()
	}
	path := filepath.Join(base, name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fault.New(opNode, fault.Invalid, "no runtime directory for the embedded node's socket").Because(err)
	}
	if err := private(path); err != nil {
		return "", fault.New(opNode, fault.Denied, "runtime directory %s is not safe for a socket; remove it or set XDG_RUNTIME_DIR", path).Because(err)
	}
	return path, nil
}

// logTail is the end of the node's log, for the error of a client whose node did not start.
func (d dir) logTail() string {
	const keep = 1500
	text, err := os.ReadFile(d.file(logName))
	if err != nil {
		return ""
	}
	if len(text) > keep {
		text = text[len(text)-keep:]
	}
	return strings.TrimSpace(string(text))
}
