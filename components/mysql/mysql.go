// Package mysql is the MySQL and MariaDB backend: a state store with the tables of Dapr's, so
// that sidecars of both kinds read each other's data, and an output binding that runs the app's
// statements.
//
// The store itself is sqlstate.Store; here are its configuration (config.go), connections
// (conn.go), statements (state.go), tables (setup.go) and the meaning of the server's errors
// (errors.go). The binding is in binding.go, its configuration in bindingconfig.go. Start reading
// at Backend.
package mysql

import "github.com/mecha-project/mecha/components/block"

const (
	doc        = "MySQL and MariaDB."
	stateDoc   = "State in a MySQL or MariaDB database, with Dapr's tables."
	bindingDoc = "Statements of the app in a MySQL or MariaDB database."
)

// Backend lists the parts.
func Backend() block.Backend {
	return block.Backend{Name: "mysql", Doc: doc, Parts: []block.Part{
		block.StatePart("mysql", stateDoc, DefaultStateConfig, NewState),
		block.BindingPart("mysql", bindingDoc, DefaultBindingConfig, NewBinding),
	}}
}
