// Package postgres is the PostgreSQL backend: a state store with the tables, versions and
// metadata keys of Dapr's two, so that sidecars of both kinds work on one database, a
// configuration store over a table that operators write, locks in a table of our own, and an
// output binding that runs the app's statements.
//
// Start reading at Backend and state.go; layout.go holds what differs between the two table
// layouts, write.go the writes, query.go the queries, setup.go the tables. Configuration is in
// configuration.go, its changes in follow.go. Locks are in lock.go. The binding is in binding.go, its
// types in values.go. All blocks share server.go and pool.go, the connections.
package postgres

import "github.com/mecha-project/mecha/components/block"

const (
	doc              = "PostgreSQL: tables in a database server."
	docV1            = "State in PostgreSQL, with the tables of Dapr's version v1: values as jsonb, which can be queried, etags are transaction numbers."
	docBinding       = "Statements of the app in a PostgreSQL database."
	docLock          = "Locks in PostgreSQL, with fencing tokens."
	docConfiguration = "Configuration in a PostgreSQL table, followed by LISTEN."
	docV2            = "State in PostgreSQL, with the tables of Dapr's version v2: values as bytes, etags are UUIDs."
)

// Backend lists the parts. Of the two state stores version v1 is meant when a Component has no
// version, as in Dapr.
func Backend() block.Backend {
	return block.Backend{Name: "postgres", Doc: doc, Parts: []block.Part{PartV1(), PartV2(),
		block.ConfigurationPart("postgresql", docConfiguration, DefaultConfigurationConfig, NewConfiguration, block.Alias("postgres")),
		block.LockPart("postgresql", docLock, DefaultLockConfig, NewLock, block.Alias("postgres")),
		block.BindingPart("postgresql", docBinding, DefaultBindingConfig, NewBinding, block.Alias("postgres")),
	}}
}

// PartV1 is the store with values as jsonb.
func PartV1() block.Part {
	return block.StatePart("postgresql", docV1, DefaultStateV1Config, NewStateV1, block.Alias("postgres"))
}

// PartV2 is the store with values as bytes: the same component type as PartV1, told apart by
// spec.version.
func PartV2() block.Part {
	return block.StatePart("postgresql", docV2, DefaultStateV2Config, NewStateV2, block.Alias("postgres"), block.Only("v2"))
}
