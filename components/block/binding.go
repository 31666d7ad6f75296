package block

import "context"

// A binding connects an app to something outside that is neither a store nor a broker. A
// component offers one or both of the two interfaces below.

// Output is a binding that apps call.
type Output interface {
	Component
	// Operations are the names that Invoke takes, Dapr's ("create", "get", "exec").
	Operations() []string
	// Invoke does one operation; one that is not among Operations is fault.Unsupported. A nil
	// answer means that there is nothing to say. An error may come with an answer whose metadata
	// tells more.
	Invoke(ctx context.Context, r BindingRequest) (*BindingAnswer, error)
}

// BindingRequest is one operation on a binding.
type BindingRequest struct {
	Operation string
	Data      []byte
	Metadata  map[string]string
}

// BindingAnswer is what a binding says to an operation.
type BindingAnswer struct {
	Data     []byte // nil: none
	Metadata map[string]string
}

// Input is a binding that brings events to the app.
type Input interface {
	Component
	// Read delivers events until ctx ends, then returns ctx's error, when no deliver is in
	// progress any more. deliver blocks while the app handles the event; its error means that the
	// event was not handled and should come again if the product can do that. It is called with
	// Read's own ctx or one made of it. Several events may be delivered at once. A lost connection
	// is repaired inside; Read returns early only when it cannot go on.
	Read(ctx context.Context, deliver func(ctx context.Context, e BindingEvent) ([]byte, error)) error
}

// BindingEvent is one event of a binding.
type BindingEvent struct {
	Data     []byte
	Metadata map[string]string
}
