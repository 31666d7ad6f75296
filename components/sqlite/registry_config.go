package sqlite

import (
	"errors"
	"regexp"
	"time"

	"github.com/mecha-project/mecha/components/conf"
)

// RegistryConfig configures SQLite as a registry. Names and defaults are Dapr's.
type RegistryConfig struct {
	// ConnectionString is the database file: a path, or a "file:" address with SQLite's options.
	ConnectionString string `yaml:"connectionString" alias:"url" required:"true"`
	// TableName is the table of instances. Details that Dapr's table has no room for are in
	// a second table of this name followed by "_mecha".
	TableName string `yaml:"tableName"`
	// MetadataTableName is the table that records the version of the tables.
	MetadataTableName string `yaml:"metadataTableName"`
	// UpdateInterval is how long an instance counts as live after its last renewal. It must be the
	// same for all who share the file. Whole seconds; a bare number counts seconds.
	UpdateInterval time.Duration `yaml:"updateInterval" unit:"s"`
	// CleanupInterval is how often rows of dead instances are removed. 0 means never.
	CleanupInterval time.Duration `yaml:"cleanupInterval" alias:"cleanupIntervalInSeconds" unit:"s"`
	// Timeout bounds one operation. Rows are renewed this much before they end.
	Timeout time.Duration `yaml:"timeout" alias:"timeoutInSeconds" unit:"s"`
	// BusyTimeout is how long an operation waits for another process's lock.
	BusyTimeout time.Duration `yaml:"busyTimeout" unit:"s"`
	// DisableWAL keeps the rollback journal instead of the write-ahead log: slower, but it works
	// on network file systems.
	DisableWAL bool `yaml:"disableWAL"`
}

// DefaultRegistryConfig is the configuration with nothing set.
func DefaultRegistryConfig() *RegistryConfig {
	return &RegistryConfig{TableName: "hosts", MetadataTableName: "metadata", UpdateInterval: 5 * time.Second,
		CleanupInterval: time.Hour, Timeout: time.Second, BusyTimeout: 800 * time.Millisecond}
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// Validate reports every mistake in the configuration. A missing connection string is the
// decoder's to report.
func (c *RegistryConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.ConnectionString != "" {
		if _, err := dsn(c.ConnectionString, 0, false, false); err != nil {
			bad("connectionString", "%v", err)
		}
	}
	for key, name := range map[string]string{"tableName": c.TableName, "metadataTableName": c.MetadataTableName} {
		if !identifier.MatchString(name) {
			bad(key, "%q is not a table name; use letters, digits and _", name)
		}
	}
	if c.TableName == c.MetadataTableName {
		bad("metadataTableName", "%q is the table of instances already", c.MetadataTableName)
	}
	if c.Timeout <= 0 {
		bad("timeout", "%v is not a time to wait; want more than 0", c.Timeout)
	}
	if c.UpdateInterval%time.Second != 0 {
		bad("updateInterval", "%v is not a whole number of seconds", c.UpdateInterval)
	}
	if c.UpdateInterval-c.Timeout < time.Second {
		bad("updateInterval", "%v must be at least 1s longer than timeout (%v), so that a renewal comes in time", c.UpdateInterval, c.Timeout)
	}
	if c.CleanupInterval < 0 {
		bad("cleanupInterval", "%v is negative", c.CleanupInterval)
	}
	if c.BusyTimeout < 0 {
		bad("busyTimeout", "%v is negative", c.BusyTimeout)
	}
	return errors.Join(errs...)
}
