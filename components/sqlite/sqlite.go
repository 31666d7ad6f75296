// Package sqlite is the SQLite backend: a database in a file, shared by the processes of
// one host, through the pure Go port of SQLite (no cgo).
//
// It offers a state store and a registry with the tables and keys of Dapr's, so that sidecars
// of both kinds read each other's data and find each other through one file. Start reading at
// Backend, then state.go or registry.go; conn.go opens files.
package sqlite

import "github.com/mecha-project/mecha/components/block"

const (
	doc         = "SQLite: a database in a file, shared by the processes of one host."
	stateDoc    = "State in a SQLite file, with Dapr's tables."
	registryDoc = "Registry in a SQLite file, with Dapr's tables."
)

// Backend lists the parts: a state store and a registry.
func Backend() block.Backend {
	return block.Backend{Name: "sqlite", Doc: doc, Parts: []block.Part{
		block.StatePart("sqlite", stateDoc, DefaultStateConfig, NewState, block.Alias("sqlite3")),
		block.RegistryPart("sqlite", registryDoc, DefaultRegistryConfig, NewRegistry),
	}}
}
