package mysql

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// StateConfig configures MySQL or MariaDB as a state store. Names and defaults are Dapr's.
type StateConfig struct {
	// ConnectionString is "user:password@tcp(host:port)/?option=value", without a database; the
	// options are those of the Go driver, every other is a variable of the session.
	ConnectionString conf.Secret `yaml:"connectionString" alias:"url" required:"true"`
	// SchemaName is the database. It is made if it does not exist.
	SchemaName string `yaml:"schemaName"`
	// TableName is the table of items.
	TableName string `yaml:"tableName"`
	// MetadataTableName is the table that records the last cleaning.
	MetadataTableName string `yaml:"metadataTableName"`
	// Timeout bounds one operation, connecting included. 0 or less means 20s.
	Timeout time.Duration `yaml:"timeoutInSeconds" alias:"timeout" unit:"s"`
	// CleanupInterval is how often expired rows are removed; they are never shown. 0 or less means
	// never.
	CleanupInterval time.Duration `yaml:"cleanupInterval" alias:"cleanupIntervalInSeconds" unit:"s"`
	// PemPath is the file of the authority that signed the server's certificate. It needs
	// tls=custom in the connection string.
	PemPath string `yaml:"pemPath"`
	// PemContents is that authority's certificate itself, instead of pemPath.
	PemContents string `yaml:"pemContents"`
	// MaxConns is the largest number of connections. 0 means 8.
	MaxConns int `yaml:"maxConns"`
}

const (
	defaultTimeout = 20 * time.Second
	defaultConns   = 8
)

// DefaultStateConfig is the configuration with nothing set.
func DefaultStateConfig() *StateConfig {
	return &StateConfig{SchemaName: "dapr_state_store", TableName: "state", MetadataTableName: "dapr_metadata",
		Timeout: defaultTimeout, CleanupInterval: time.Hour}
}

// Validate reports every mistake. A missing connection string is the decoder's to report.
func (c *StateConfig) Validate() error {
	errs := []error{sqlstate.CheckName("schemaName", c.SchemaName), sqlstate.CheckName("tableName", c.TableName),
		sqlstate.CheckName("metadataTableName", c.MetadataTableName)}
	if c.TableName == c.MetadataTableName {
		errs = append(errs, conf.Bad("metadataTableName", "%q is the table of items already", c.MetadataTableName))
	}
	if c.Timeout > 0 && c.Timeout < time.Second {
		errs = append(errs, conf.Bad("timeoutInSeconds", "%v is too short; want 1s or more", c.Timeout))
	}
	if c.MaxConns < 0 {
		errs = append(errs, conf.Bad("maxConns", "%d is negative", c.MaxConns))
	}
	if c.ConnectionString != "" {
		_, err := c.driver()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *StateConfig) timeout() time.Duration {
	if c.Timeout <= 0 {
		return defaultTimeout
	}
	return c.Timeout
}

// driver is the configuration in the driver's form. It does no network I/O.
func (c *StateConfig) driver() (*mysql.Config, error) {
	dc, custom, err := parse("connectionString", "user:password@tcp(host:port)/?option=value", c.ConnectionString.Reveal())
	if err != nil {
		return nil, err
	}
	if dc.DBName != "" {
		return nil, conf.Bad("connectionString", "names the database %q; that belongs into schemaName", dc.DBName)
	}
	if err := trust(dc, custom, c.PemPath, c.PemContents); err != nil {
		return nil, err
	}
	dc.ClientFoundRows = false // rows that stay as they are must not count as changed
	c.session(dc)
	return dc, nil
}

// parse reads a connection string, given with key, and tells whether it has tls=custom.
func parse(key, form, text string) (*mysql.Config, bool, error) {
	text, custom := cutCustom(text)
	dc, err := mysql.ParseDSN(text)
	switch {
	case err != nil && strings.HasPrefix(err.Error(), "invalid DSN"):
		return nil, false, conf.Bad(key, "want %s; %v", form, err)
	case err != nil: // other texts may repeat a password that stands in the wrong place
		return nil, false, conf.Bad(key, "want %s; or the value of an option is wrong", form)
	}
	if err := dc.Apply(mysql.Charset("utf8mb4", "")); err != nil { // texts are any text
		return nil, false, err
	}
	dc.Logger = &mysql.NopLogger{} // what it says is in the errors, too
	if dc.MaxAllowedPacket == mysql.NewConfig().MaxAllowedPacket {
		dc.MaxAllowedPacket = 0 // the server's limit, so that what it would refuse is not sent
	}
	return dc, custom, nil
}

// session sets variables whose values the statements rely on.
func (c *StateConfig) session(dc *mysql.Config) {
	given := dc.Params
	dc.Params = map[string]string{"innodb_lock_wait_timeout": fmt.Sprint(int(c.timeout().Seconds()))}
	for k, v := range given {
		dc.Params[strings.ToLower(k)] = v
	}
	dc.Params["sql_mode"] = "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'" // nothing is cut off silently
	dc.Params["time_zone"] = "'+00:00'"                                  // every hour exists once
}

// trust makes the TLS configuration named "custom", which Dapr registers with the driver for
// the whole process: two components with different authorities would disturb each other.
func trust(dc *mysql.Config, custom bool, path, contents string) error {
	key, text := "pemPath", []byte(contents)
	if contents != "" {
		key = "pemContents"
	}
	switch given := path != "" || contents != ""; {
	case !given && !custom:
		return nil
	case !given:
		return conf.Bad("pemPath", "required with tls=custom in the connection string")
	case !custom:
		return conf.Bad(key, "has no effect without tls=custom in the connection string")
	case path != "" && contents != "":
		return conf.Bad("pemContents", "give this or pemPath, not both")
	}
	if path != "" {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return conf.Bad(key, "%v", err)
		}
	}
	dc.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !dc.TLS.RootCAs.AppendCertsFromPEM(text) {
		return conf.Bad(key, "holds no certificate; want PEM text with BEGIN CERTIFICATE")
	}
	return nil
}

// cutCustom removes the option tls=custom, which the driver does not know, and tells whether
// it was there.
func cutCustom(dsn string) (string, bool) {
	slash := strings.LastIndexByte(dsn, '/')
	head, query, found := strings.Cut(dsn[slash+1:], "?")
	if slash < 0 || !found {
		return dsn, false
	}
	custom := false
	var kept []string
	for _, option := range strings.Split(query, "&") {
		if option == "tls=custom" {
			custom = true
			continue
		}
		kept = append(kept, option)
	}
	if !custom {
		return dsn, false
	}
	dsn = dsn[:slash+1] + head
	if len(kept) > 0 {
		dsn += "?" + strings.Join(kept, "&")
	}
	return dsn, true
}
