package mqtt

import (
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// Hasten shortens the pauses before an event comes again.
func Hasten(b block.Component, retry, park time.Duration) {
	o := b.(*binding)
	o.retry, o.park = retry, park
}
