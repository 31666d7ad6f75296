// Package mqtt is the MQTT backend: a binding that publishes to a topic and reads one, in MQTT 3.1.1.
//
// connconfig.go says how to reach a broker; session.go is one connection and what is on its way
// there; link.go keeps one for sending. binding.go and read.go are the binding's two directions.
//
// The packets are those of Eclipse Paho's client for 3.1.1, its connection is not: acknowledgements
// must be the app's word and belong to the connection that brought the message, and every call must
// end with its context. That client gives a publish no context and may hold it for half a minute,
// keeps tokens that never settle after a lost connection, and runs messages without a limit.
package mqtt

import "github.com/mecha-project/mecha/components/block"

const doc = "Messages to and from a topic of an MQTT broker."

// Backend lists the parts: a binding, input and output.
func Backend() block.Backend {
	return block.Backend{Name: "mqtt", Doc: "MQTT 3.1.1", Parts: []block.Part{
		block.BindingPart("mqtt3", doc, DefaultBindingConfig, NewBinding, block.Alias("mqtt")),
	}}
}
