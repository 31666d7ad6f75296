package engine

// credit is what the app still takes. Of what was never granted it takes any amount.
type credit struct {
	messages, bytes     int
	ofMessages, ofBytes bool // granted once
}

// room is how much of messages and bytes the credit allows.
func (cr *credit) room(messages, bytes int) (int, int) {
	if cr.ofMessages {
		messages = min(messages, cr.messages)
	}
	if cr.ofBytes {
		bytes = min(bytes, cr.bytes)
	}
	return messages, bytes
}

// grant adds to the credit.
func (cr *credit) grant(messages, bytes int) {
	if messages > 0 {
		cr.ofMessages = true
		cr.messages = min(cr.messages+messages, maxCredit)
	}
	if bytes > 0 {
		cr.ofBytes = true
		cr.bytes = min(cr.bytes+bytes, maxCredit)
	}
}

// spend takes from it what was delivered. A message that is larger than the bytes left, and goes alone, takes
// them all.
func (cr *credit) spend(messages, bytes int) {
	cr.messages = max(0, cr.messages-messages)
	cr.bytes = max(0, cr.bytes-bytes)
}
