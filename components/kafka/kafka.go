// Package kafka serves building blocks from Apache Kafka.
//
// Bindings (binding.go): an output that appends records to one topic, and an input that brings the
// records of topics to the app, as a member of a consumer group.
//
// What blocks share has a file each. connconfig.go is what a user says of brokers, sign-in and
// TLS; conn.go makes a client of it and tells of connections that fail. config.go has what
// producers and consumers are told, record.go the form of a record, which is Dapr's, producer.go
// an acknowledged append. member.go is a member of a consumer group with lane.go, one partition's
// records in their order. errors.go puts the client library's errors into the house's words.
//
// Offsets are committed behind what was handled, never past a record that was not.
package kafka

import "github.com/mecha-project/mecha/components/block"

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "kafka",
		Doc:  "Apache Kafka, and servers that speak its protocol.",
		Parts: []block.Part{
			block.BindingPart("kafka", "Records of Kafka topics, to the app and from it.", DefaultBindingConfig, NewBinding),
		},
	}
}
