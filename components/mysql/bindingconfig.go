package mysql

import (
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mecha-project/mecha/components/conf"
)

// BindingConfig configures MySQL or MariaDB as an output binding. Names are Dapr's, except those of
// Timeout and MaxResultSize.
type BindingConfig struct {
	// URL is "user:password@tcp(host:port)/database?option=value"; the options are those of the Go
	// driver, every other is a variable of the session.
	URL conf.Secret `yaml:"url" required:"true"`
	// PemPath is the file of the authority that signed the server's certificate. It needs
	// tls=custom in the URL.
	PemPath string `yaml:"pemPath"`
	// MaxIdleConns is how many unused connections stay. 0 means as many as MaxOpenConns allows.
	MaxIdleConns int `yaml:"maxIdleConns"`
	// MaxOpenConns is the largest number of connections. 0 means 16.
	MaxOpenConns int `yaml:"maxOpenConns"`
	// ConnMaxLifetime is when a connection is replaced. 0 means never.
	ConnMaxLifetime time.Duration `yaml:"connMaxLifetime" unit:"s"`
	// ConnMaxIdleTime is when an unused connection is closed. 0 means 5m.
	ConnMaxIdleTime time.Duration `yaml:"connMaxIdleTime" unit:"s"`
	// Timeout bounds one statement, connecting included. 0 means no bound but the caller's;
	// connecting is bounded by 20s then.
	Timeout time.Duration `yaml:"timeout" unit:"s"`
	// MaxResultSize bounds the rows of a query, as JSON; more are an error.
	MaxResultSize conf.ByteSize `yaml:"maxResultSize"`
}

// DefaultBindingConfig is the configuration with nothing set.
func DefaultBindingConfig() *BindingConfig {
	return &BindingConfig{MaxResultSize: 100 * conf.MiB}
}

// Validate reports every mistake. A missing URL is the decoder's to report.
func (c *BindingConfig) Validate() error {
	var errs []error
	for key, n := range map[string]int{"maxIdleConns": c.MaxIdleConns, "maxOpenConns": c.MaxOpenConns} {
		if n < 0 {
			errs = append(errs, conf.Bad(key, "%d is negative", n))
		}
	}
	for key, d := range map[string]time.Duration{"connMaxLifetime": c.ConnMaxLifetime, "connMaxIdleTime": c.ConnMaxIdleTime, "timeout": c.Timeout} {
		if d < 0 {
			errs = append(errs, conf.Bad(key, "%v is negative", d))
		}
	}
	if c.MaxResultSize <= 0 {
		errs = append(errs, conf.Bad("maxResultSize", "must be above 0"))
	}
	if c.URL != "" {
		_, err := c.driver()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// driver is the configuration in the driver's form. It does no network I/O.
func (c *BindingConfig) driver() (*mysql.Config, error) {
	dc, custom, err := parse("url", "user:password@tcp(host:port)/database?option=value", c.URL.Reveal())
	if err != nil {
		return nil, err
	}
	if dc.AllowAllFiles { // statements are the app's, files of this host are not
		return nil, conf.Bad("url", "allowAllFiles would let statements and the server read files of this host; remove it")
	}
	if err := trust(dc, custom, c.PemPath, ""); err != nil {
		return nil, err
	}
	dc.ParseTime = true          // as Dapr: times are times
	dc.InterpolateParams = false // parameters stay out of the statement's text
	given := dc.Params
	dc.Params = map[string]string{}
	for k, v := range given {
		if !strings.EqualFold(k, "autocommit") {
			dc.Params[k] = v
		}
	}
	dc.Params["autocommit"] = "1" // what is acknowledged is committed
	return dc, nil
}

// bindingConns is the largest number of connections when nobody says.
const bindingConns = 16

// pool makes the pool without I/O.
func (c *BindingConfig) pool(dc *mysql.Config) (*sql.DB, error) {
	made, err := mysql.NewConnector(dc)
	if err != nil {
		return nil, err
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	db := sql.OpenDB(&connector{Connector: made, timeout: timeout})
	db.SetMaxOpenConns(c.open())
	db.SetMaxIdleConns(c.idle())
	db.SetConnMaxLifetime(c.ConnMaxLifetime)
	idle := c.ConnMaxIdleTime
	if idle <= 0 {
		idle = 5 * time.Minute // proxies and firewalls forget idle connections
	}
	db.SetConnMaxIdleTime(idle)
	return db, nil
}

func (c *BindingConfig) open() int {
	if c.MaxOpenConns <= 0 {
		return bindingConns
	}
	return c.MaxOpenConns
}

func (c *BindingConfig) idle() int {
	if c.MaxIdleConns <= 0 {
		return c.open()
	}
	return c.MaxIdleConns
}
