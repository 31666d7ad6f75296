package postgres

import (
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// ConnConfig says how to reach the server. Names and defaults are Dapr's.
type ConnConfig struct {
	// ConnectionString is a "postgres://" address or a list of keyword=value, as the product's
	// own tools take it. The keys host to sslRootCert replace what it says.
	ConnectionString conf.Secret `yaml:"connectionString" alias:"url"`
	// Host is the server's name or the folder of its Unix socket; several separated by commas.
	Host string `yaml:"host"`
	// HostAddr is the server's IP address, when host is only the name in its certificate.
	HostAddr string `yaml:"hostaddr"`
	// Port is the server's port.
	Port string `yaml:"port"`
	// Database is the database's name.
	Database string `yaml:"database"`
	// User is the role to log in as.
	User string `yaml:"user"`
	// Password is the role's password.
	Password conf.Secret `yaml:"password"`
	// SSLRootCert is the file of the authority that signed the server's certificate. The
	// connection string's sslmode says what is checked.
	SSLRootCert string `yaml:"sslRootCert"`
	// Timeout bounds one operation, connecting included; at least 1s.
	Timeout time.Duration `yaml:"timeout" alias:"timeoutInSeconds" unit:"s"`
	// MaxConns is the largest number of connections. 0 means 4 or the number of processors,
	// whichever is more.
	MaxConns int `yaml:"maxConns"`
	// ConnectionMaxIdleTime is how long an unused connection stays. 0 means 30m.
	ConnectionMaxIdleTime time.Duration `yaml:"connectionMaxIdleTime" alias:"connMaxIdleTime" unit:"s"`
	// QueryExecMode is how statements are sent. The default prepares them once per connection;
	// proxies that share connections among clients need exec or simple_protocol.
	QueryExecMode string `yaml:"queryExecMode" enum:"cache_statement,cache_describe,describe_exec,exec,simple_protocol"`
	// UseAzureAD is not available: true is refused.
	UseAzureAD bool `yaml:"useAzureAD"`
	// UseAWSIAM is not available: true is refused.
	UseAWSIAM bool `yaml:"useAWSIAM"`
}

func defaultConn() ConnConfig { return ConnConfig{Timeout: 20 * time.Second} }

// Validate reports every mistake.
func (c *ConnConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.UseAzureAD {
		bad("useAzureAD", "logging in through Entra ID is not available; use a password or a client certificate")
	}
	if c.UseAWSIAM {
		bad("useAWSIAM", "logging in through AWS IAM is not available; use a password or a client certificate")
	}
	if c.Timeout < time.Second {
		bad("timeout", "%v is too short; want 1s or more", c.Timeout)
	}
	if c.ConnectionString == "" && c.Host == "" && c.HostAddr == "" {
		bad("connectionString", "required, unless host is given")
	} else if _, err := c.pool(); err != nil && len(errs) == 0 {
		bad("connectionString", "%v", err) // the library keeps passwords out of it
	}
	return errors.Join(errs...)
}

// pool is the configuration in the library's form. It does no network I/O.
func (c *ConnConfig) pool() (*poolConfig, error) {
	text, err := c.dsn()
	if err != nil {
		return nil, err
	}
	cc, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, err
	}
	p := &poolConfig{conn: cc, max: max(4, runtime.NumCPU()), idle: 30 * time.Minute, life: time.Hour}
	if err := p.take(cc.RuntimeParams); err != nil {
		return nil, err
	}
	if c.MaxConns > 0 {
		p.max = c.MaxConns
	}
	if c.ConnectionMaxIdleTime > 0 {
		p.idle = c.ConnectionMaxIdleTime
	}
	if addr := c.HostAddr; addr != "" {
		p.address(addr)
	}
	if cc.ConnectTimeout <= 0 || cc.ConnectTimeout > c.Timeout {
		cc.ConnectTimeout = c.Timeout
	}
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = "mecha"
	}
	if mode, ok := execModes[c.QueryExecMode]; ok {
		cc.DefaultQueryExecMode = mode
	}
	return p, nil
}

var execModes = map[string]pgx.QueryExecMode{
	"cache_statement": pgx.QueryExecModeCacheStatement, "cache_describe": pgx.QueryExecModeCacheDescribe,
	"describe_exec": pgx.QueryExecModeDescribeExec, "exec": pgx.QueryExecModeExec, "simple_protocol": pgx.QueryExecModeSimpleProtocol,
}

// dsn is the connection string with the separate keys put into it; what comes later wins.
func (c *ConnConfig) dsn() (string, error) {
	host := c.Host
	if host == "" && c.ConnectionString == "" {
		host = c.HostAddr
	}
	more := []struct{ key, value string }{{"host", host}, {"port", c.Port}, {"dbname", c.Database}, {"user", c.User},
		{"password", c.Password.Reveal()}, {"sslrootcert", c.SSLRootCert}}
	text := c.ConnectionString.Reveal()
	if !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://") {
		quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
		for _, m := range more {
			if m.value != "" {
				text += " " + m.key + "='" + quote.Replace(m.value) + "'"
			}
		}
		return text, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", errors.New("is not an address; is a character of the password not escaped?") // err would repeat it
	}
	q := u.Query()
	for _, m := range more {
		if m.value != "" {
			q.Set(m.key, m.value)
		}
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// take removes the keywords about pools, which are not the server's, from params.
func (p *poolConfig) take(params map[string]string) error {
	for key, value := range params {
		var err error
		switch key {
		case "pool_max_conns":
			if p.max, err = strconv.Atoi(value); err == nil && p.max < 1 {
				err = errors.New("must be at least 1")
			}
		case "pool_max_conn_idle_time":
			p.idle, err = time.ParseDuration(value)
		case "pool_max_conn_lifetime":
			p.life, err = time.ParseDuration(value)
		case "hostaddr":
			p.address(value)
		case "pool_min_conns", "pool_min_idle_conns", "pool_health_check_period", "pool_max_conn_lifetime_jitter", "pool_ping_timeout":
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		delete(params, key)
	}
	return nil
}

// StateV2Config configures the store of version v2.
type StateV2Config struct {
	Conn ConnConfig
	// TablePrefix is put before the table's name, "state"; it may begin with a schema: "app.x_".
	TablePrefix string `yaml:"tablePrefix"`
	// MetadataTableName is the table that records the version of the tables and the last cleaning.
	MetadataTableName string `yaml:"metadataTableName"`
	// CleanupInterval is how often expired rows are removed; they are never shown. 0 or less means
	// never.
	CleanupInterval time.Duration `yaml:"cleanupInterval" alias:"cleanupIntervalInSeconds" unit:"s"`
}

// DefaultStateV2Config is the configuration with nothing set.
func DefaultStateV2Config() *StateV2Config {
	return &StateV2Config{Conn: defaultConn(), MetadataTableName: "dapr_metadata", CleanupInterval: time.Hour}
}

// Validate reports every mistake.
func (c *StateV2Config) Validate() error {
	return errors.Join(sqlstate.CheckQualified("tablePrefix", c.TablePrefix+"state"), sqlstate.CheckQualified("metadataTableName", c.MetadataTableName))
}

// StateV1Config configures the store of version v1.
type StateV1Config struct {
	Conn ConnConfig
	// TableName is the table of items, "table" or "schema.table".
	TableName string `yaml:"tableName"`
	// MetadataTableName is the table that records the version of the tables and the last cleaning.
	MetadataTableName string `yaml:"metadataTableName"`
	// CleanupInterval is how often expired rows are removed; they are never shown. 0 or less means
	// never.
	CleanupInterval time.Duration `yaml:"cleanupInterval" alias:"cleanupIntervalInSeconds" unit:"s"`
}

// DefaultStateV1Config is the configuration with nothing set.
func DefaultStateV1Config() *StateV1Config {
	return &StateV1Config{Conn: defaultConn(), TableName: "state", MetadataTableName: "dapr_metadata", CleanupInterval: time.Hour}
}

// Validate reports every mistake.
func (c *StateV1Config) Validate() error {
	return errors.Join(sqlstate.CheckQualified("tableName", c.TableName), sqlstate.CheckQualified("metadataTableName", c.MetadataTableName))
}

// NewStateV1 opens the store of version v1. It does no I/O: the first use does.
func NewStateV1(env block.Env, c *StateV1Config) (block.State, error) {
	return newState(env, &c.Conn, c.Validate(), v1(c.TableName, c.MetadataTableName), c.CleanupInterval)
}

// NewStateV2 opens the store of version v2. It does no I/O: the first use does.
func NewStateV2(env block.Env, c *StateV2Config) (block.State, error) {
	return newState(env, &c.Conn, c.Validate(), v2(c.TablePrefix, c.MetadataTableName), c.CleanupInterval)
}

func newState(env block.Env, c *ConnConfig, invalid error, l *layout, cleanup time.Duration) (block.State, error) {
	if err := errors.Join(c.Validate(), invalid); err != nil {
		return nil, fault.Wrap("postgres.NewState", fault.Invalid, err)
	}
	p, err := c.pool()
	if err != nil {
		return nil, fault.Wrap("postgres.NewState", fault.Invalid, err)
	}
	s := &state{layout: l, every: cleanup}
	s.open(p, c.Timeout)
	s.cleaner = sqlstate.Cleaner{Every: cleanup, Claim: s.claim, Remove: s.remove, Log: env.Log}
	if l.search != "" {
		return &jsonState{s, maxFound}, nil
	}
	return s, nil
}
