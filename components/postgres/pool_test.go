package postgres_test

import (
	"context"
	"sync"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/servers"
)

const ours = `SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'mecha'`

// There are never more connections than allowed, and unused ones leave.
func TestConnections(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	s := open(t, "v2", at(port, "maxConns", "2", "connectionMaxIdleTime", "300ms")...)
	set(t, s, "k", "v")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if _, err := s.Get(t.Context(), "k", block.StateRead{}); err != nil {
					t.Errorf("Get: %v", err)
				}
			}
		})
	}
	for range 10 {
		if n := text(t, c, ours); n > "2" {
			t.Errorf("%s connections, want 2 at most", n)
		}
	}
	wg.Wait()
	waitFor(t, "unused connections to leave", func() bool { return text(t, c, ours) == "0" })
	set(t, s, "k", "w")
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
	waitFor(t, "the connections of a closed store to leave", func() bool { return text(t, c, ours) == "0" })
}
