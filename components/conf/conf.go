// Package conf turns what a user wrote into typed configuration, and says precisely what
// is wrong with it. A backend declares one struct per block; Decode fills it from the
// metadata entries of a Component resource.
//
// The decoder is strict and reports everything at once: unknown keys (with the nearest
// known one), values of a wrong type, duplicates, missing required keys and whatever the
// struct's own Validate finds, each with file, line and key. It never prints the value of a
// secret.
//
// The package also holds the typed pieces configuration structs share: Secret, Duration,
// ByteSize and TLS. What it leaves to others: reading files and resolving references to
// secrets (runtime/settings, runtime/catalog), and what a configuration means (backends).
//
// Start reading at Item and Decode; struct tags are described at Decode.
package conf

// Item is one metadata entry of a resource: a name and a value as text, and where it was
// written. Items are plain values and may be copied.
type Item struct {
	Name, Value string
	File        string // as given by the user; empty when the entry comes from code
	Line        int    // 1-based; 0 when unknown
	// Secret says the value came from a secret store or an equally sensitive place: it is
	// kept out of every message, whatever the field's type.
	Secret bool
	// SecretName is the name of the secret that the value was read from; empty when it came from
	// elsewhere.
	SecretName string
}

// Items makes entries from alternating names and values, for tests and for code that
// builds a configuration itself. An odd trailing name gets an empty value.
func Items(namesAndValues ...string) []Item {
	items := make([]Item, 0, (len(namesAndValues)+1)/2)
	for i := 0; i < len(namesAndValues); i += 2 {
		it := Item{Name: namesAndValues[i]}
		if i+1 < len(namesAndValues) {
			it.Value = namesAndValues[i+1]
		}
		items = append(items, it)
	}
	return items
}
