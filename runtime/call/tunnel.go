package call

import (
	"context"
	"io"
	"sync"
)

// Splice carries bytes between a and b, both ways, until both have ended, one breaks, or ctx
// ends; it closes both. The end of one direction is passed on where the other side has a
// CloseWrite method, and otherwise ends both. It returns when nothing uses a or b any more.
func Splice(ctx context.Context, a, b io.ReadWriteCloser) {
	hangUp := sync.OnceFunc(func() {
		a.Close()
		b.Close()
	})
	stop := context.AfterFunc(ctx, hangUp)
	defer stop()
	defer hangUp()
	var back sync.WaitGroup
	back.Go(func() {
		if !carry(b, a) {
			hangUp()
		}
	})
	if !carry(a, b) {
		hangUp()
	}
	back.Wait()
}

// carry copies src to dst, and reports whether src ended well and dst could be told.
func carry(dst io.Writer, src io.Reader) bool {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return false
			}
		}
		if err == nil {
			continue
		}
		half, ok := dst.(interface{ CloseWrite() error })
		return Ended(err) && ok && half.CloseWrite() == nil
	}
}
