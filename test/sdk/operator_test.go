//go:build unix

package sdk

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// newOperator serves the programs what Dapr's API has no call for, writing configuration: a PUT to
// /<store>/<key>, answered when the store has it. It returns its URL. The embedded node is written
// with the binary's own command, Redis as any of its clients does.
func newOperator(t *testing.T, home string, redis *servers.Redis) string {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(set func(ctx context.Context, key, value string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			value, err := io.ReadAll(r.Body)
			if err == nil {
				err = set(r.Context(), r.PathValue("key"), string(value))
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}
	}
	binary := harness.Binary(t)
	mux.HandleFunc("PUT /emb-config/{key}", answer(func(ctx context.Context, key, value string) error {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary, "config", "set", "--store", "emb-config", key, value)
		cmd.Env = append(os.Environ(), "MECHA_RUNTIME_DIR="+home, "HOME="+home)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("mecha config set: %w: %s", err, out)
		}
		return nil
	}))
	mux.HandleFunc("PUT /redis-config/{key}", answer(func(_ context.Context, key, value string) error {
		_, err := servers.RedisCommand(redis.Port, "SET", key, value)
		return err
	}))
	return fmt.Sprintf("http://127.0.0.1:%d", harness.Serve(t, mux))
}
