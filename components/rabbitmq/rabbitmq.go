// Package rabbitmq is the RabbitMQ backend: a binding that sends to a queue and reads from it.
//
// connconfig.go says how to reach the server and link.go keeps a connection to it, for all blocks;
// publish.go sends with the broker's confirmation; binding.go and read.go are the binding's two
// directions. What RabbitMQ and the client library report becomes a fault in errors.go.
//
// The protocol is AMQP 0-9-1.
package rabbitmq

import "github.com/mecha-project/mecha/components/block"

const doc = "Messages to and from a RabbitMQ queue."

// Backend lists the parts: a binding, input and output.
func Backend() block.Backend {
	return block.Backend{Name: "rabbitmq", Doc: "RabbitMQ", Parts: []block.Part{
		block.BindingPart("rabbitmq", doc, DefaultBindingConfig, NewBinding),
	}}
}
