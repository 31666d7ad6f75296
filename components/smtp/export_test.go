package smtp

import "github.com/mecha-project/mecha/components/block"

// SetImplicit makes a component speak TLS from the beginning, whatever its port: tests cannot have
// port 465.
func SetImplicit(b block.Output) { b.(*output).implicit = true }
