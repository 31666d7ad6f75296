// Package sqlite is the SQLite backend: a database in a file, shared by the processes of
// one host, through the pure Go port of SQLite (no cgo).
//
// It offers a registry with the tables and keys of Dapr's, so that sidecars of both kinds
// find each other through one file. Start reading at Backend and registry.go; conn.go opens
// files.
package sqlite

import "github.com/mecha-project/mecha/components/block"

const (
	doc         = "SQLite: a database in a file, shared by the processes of one host."
	registryDoc = "Registry in a SQLite file, with Dapr's tables."
)

// Backend lists the parts: a registry.
func Backend() block.Backend {
	return block.Backend{Name: "sqlite", Doc: doc, Parts: []block.Part{
		block.RegistryPart("sqlite", registryDoc, DefaultRegistryConfig, NewRegistry),
	}}
}
