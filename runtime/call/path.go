package call

import (
	"strings"

	"github.com/mecha-project/mecha/components/fault"
)

// CleanPath cleans a decoded method path: no forbidden characters, "." and ".." resolved
// without escaping the root, duplicate, leading and trailing slashes dropped. Whatever judges
// paths sees this form, and it is what the app is asked for.
func CleanPath(m string) (string, error) {
	simple := m == "" || m[0] != '.'
	for i := 0; i < len(m); i++ {
		switch c := m[i]; {
		case c == '#' || c == '?' || c < 0x20 || c == 0x7f:
			return "", fault.New("call.CleanPath", fault.Invalid, "code = InvalidArgument desc = method contains forbidden character %q at byte %d", c, i)
		case c == '/' && (i == 0 || i == len(m)-1 || m[i+1] == '/' || m[i+1] == '.'):
			simple = false
		}
	}
	if simple {
		return m, nil
	}
	var keep []string
	for seg := range strings.SplitSeq(m, "/") {
		switch seg {
		case "", ".":
		case "..":
			if len(keep) > 0 {
				keep = keep[:len(keep)-1]
			}
		default:
			keep = append(keep, seg)
		}
	}
	return strings.Join(keep, "/"), nil
}
