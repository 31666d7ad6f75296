package pubsub

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// isProtoCloudEvent reports whether bytes would decode as an io.cloudevents.v1.CloudEvent.
// Only the wire form is walked: the payload is carried, not read. As in any protobuf reader,
// unknown fields and fields of another wire type are passed over.
func isProtoCloudEvent(b []byte) bool {
	const (
		id, source, specVersion, typ = 1, 2, 3, 4
		attributes, textData         = 5, 7
	)
	return walkFields(b, func(num protowire.Number, value []byte) bool {
		switch num {
		case id, source, specVersion, typ, textData:
			return utf8.Valid(value)
		case attributes: // map<string, CloudEventAttributeValue>
			return walkFields(value, func(num protowire.Number, value []byte) bool {
				return num != 1 || utf8.Valid(value)
			})
		}
		return true
	})
}

// walkFields calls field for each length-delimited field until one is refused.
func walkFields(b []byte, field func(protowire.Number, []byte) bool) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return false
		}
		if typ == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b)
			if !field(num, value) {
				return false
			}
		}
		b = b[n:]
	}
	return true
}
