package localkeys

import (
	"log/slog"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// OpenWith opens a set at a URL that is reached by another transport.
func OpenWith(t *testing.T, by http.RoundTripper, address string, every time.Duration) block.Crypto {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c := DefaultJWKSConfig()
	c.MinRefreshInterval = every
	r := newRemote(slog.New(slog.DiscardHandler), u, c)
	r.client.Transport = by
	return &provider{ring: r}
}
