package servers

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/test/untested"
)

// MySQL starts MariaDB with user mecha, SQLPassword and TLS. Other settings are arguments such
// as "--max-connections=10".
func MySQL(tb testing.TB, settings ...string) *SQL {
	tb.Helper()
	daemon, err := program("mariadbd", "/usr/sbin")
	if err != nil {
		untested.Skip(tb, "MariaDB: %v", err)
	}
	install, err := program("mariadb-install-db")
	if err != nil {
		untested.Skip(tb, "MariaDB: %v", err)
	}
	s := newSQL(tb, "mysql")
	data := filepath.Join(s.dir, "data")
	small := []string{"--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M", "--innodb-data-file-path=ibdata1:8M:autoextend"}
	// A server that starts clears what it takes for leftovers in its tmpdir, also what another is using.
	s.run(tb, exec.Command(install, append([]string{"--no-defaults", "--datadir=" + data, "--tmpdir=" + s.dir, "--skip-test-db", "--skip-name-resolve",
		"--auth-root-authentication-method=normal"}, small...)...))
	first := filepath.Join(s.dir, "first.sql") // a statement per line, run before anybody is let in
	password := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(SQLPassword)
	s.write(tb, first, []byte("CREATE USER IF NOT EXISTS 'mecha'@'%' IDENTIFIED BY '"+password+"';\nGRANT ALL ON *.* TO 'mecha'@'%' WITH GRANT OPTION;\n"))
	s.start = func() *exec.Cmd {
		args := []string{"--no-defaults", "--datadir=" + data, "--port=" + strconv.Itoa(s.Port), "--bind-address=127.0.0.1",
			"--socket=" + filepath.Join(s.dir, "sock"), "--pid-file=" + filepath.Join(s.dir, "pid"), "--tmpdir=" + s.dir,
			"--init-file=" + first, "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=2",
			"--ssl-cert=" + s.Cert, "--ssl-key=" + filepath.Join(s.dir, "key.pem")}
		return exec.Command(daemon, append(append(args, small...), settings...)...)
	}
	s.Start(tb)
	return s
}
