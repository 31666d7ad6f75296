package nats

// Closed implements block.Log.
func (b *pubsub) Closed() <-chan struct{} { return b.conn.life.Done() }
