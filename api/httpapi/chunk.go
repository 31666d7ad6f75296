package httpapi

import "sync"

// Chunks carry streamed bodies. 32 KiB is half a link frame: two reads fill one.
var chunks = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

func takeChunk() *[]byte  { return chunks.Get().(*[]byte) }
func giveChunk(b *[]byte) { chunks.Put(b) }
