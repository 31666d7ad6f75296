package launch

import (
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
)

// interpreters are programs whose name says nothing about the app they run; such an app is
// named after its directory.
var interpreters = []string{
	"bash", "bun", "cargo", "cmd", "dart", "dash", "deno", "dotnet", "env", "func", "go", "gradle", "gradlew",
	"java", "make", "mvn", "mvnw", "node", "nodemon", "npm", "npx", "perl", "php", "pnpm", "poetry",
	"powershell", "pwsh", "py", "python", "python2", "python3", "ruby", "sh", "ts-node", "uv", "uvicorn",
	"gunicorn", "flask", "yarn", "zsh",
}

// defaultAppID names an app nobody named: after its program, or after its directory when the
// program is an interpreter. The name is the same at every start, for state keys hang on it.
// With no command, or with nothing usable in either name, it is a random silly name.
func defaultAppID(command []string, dir string) string {
	if len(command) == 0 {
		return sillyName()
	}
	base := filepath.Base(command[0])
	if runtime.GOOS == "windows" {
		base = strings.TrimSuffix(strings.ToLower(base), ".exe")
	}
	if slices.Contains(interpreters, base) {
		base = filepath.Base(dir)
	} else {
		base = strings.TrimSuffix(base, filepath.Ext(base))
	}
	if id := cleanAppID(base); id != "" {
		return id
	}
	return sillyName()
}

// cleanAppID makes an app id out of a file name: letters, digits and dashes. It is empty when
// nothing is left.
func cleanAppID(name string) string {
	id := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_':
			return r
		}
		return '-'
	}, name)
	return strings.Trim(id, "-")
}

func sillyName() string {
	moods := [...]string{"brave", "calm", "dizzy", "eager", "fancy", "giddy", "jolly", "lucky", "mellow", "nimble", "proud", "quirky", "sunny", "witty"}
	beasts := [...]string{"badger", "crane", "dingo", "egret", "ferret", "gecko", "heron", "ibex", "koala", "lemur", "marmot", "newt", "otter", "puffin"}
	return moods[rand.IntN(len(moods))] + "-" + beasts[rand.IntN(len(beasts))]
}

// didYouMean is " (did you mean X?)", or nothing when no candidate is close.
func didYouMean(word string, candidates []string) string {
	if n := conf.Nearest(word, candidates); n != "" {
		return " (did you mean " + n + "?)"
	}
	return ""
}
