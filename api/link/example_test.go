package link_test

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/mecha-project/mecha/api/link"
)

// A server that answers in capitals, and a client that calls it.
func Example() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s, err := link.NewServer(conn, link.Config{Handler: func(st *link.Stream) {
			body, err := io.ReadAll(st)
			if err != nil {
				return // the caller is gone
			}
			_ = st.SendHead([]byte("200"), fmt.Appendf(nil, "%s: got %d bytes", st.Head(), len(body)), true, nil)
		}})
		if err != nil {
			return
		}
		s.Wait()
	}()

	pool := link.NewPool(link.PoolConfig{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}})
	ctx := context.Background()
	st, err := pool.Open(ctx, l.Addr().String(), []byte("PUT /orders"), []byte("an order"), true)
	if err != nil {
		fmt.Println(err)
		return
	}
	head, body, final, err := st.RecvHead(ctx)
	fmt.Println(string(head), string(body), final, err)
	_ = pool.Close(ctx)
	<-served
	// Output: 200 PUT /orders: got 8 bytes true <nil>
}
