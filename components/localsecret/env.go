package localsecret

import (
	"context"
	"os"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// EnvConfig configures the environment as a secret store.
type EnvConfig struct {
	// Prefix is put before every name to make the variable's. GetAll lists variables that begin
	// with it, without it.
	Prefix string `yaml:"prefix"`
}

// DefaultEnvConfig is the configuration without any metadata.
func DefaultEnvConfig() *EnvConfig { return &EnvConfig{} }

// NewEnv opens the sidecar's environment as a secret store.
func NewEnv(env block.Env, c *EnvConfig) (block.Secret, error) {
	return &environment{prefix: c.Prefix, environ: os.Environ}, nil
}

type environment struct {
	gate
	prefix  string
	environ func() []string
}

var (
	_ block.Secret      = (*environment)(nil)
	_ block.SecretBlank = (*environment)(nil)
)

// BlankIfMissing says that a variable that is not set reads as an empty one.
func (e *environment) BlankIfMissing() {}

// Ping implements block.Component.
func (e *environment) Ping(ctx context.Context) error { return e.check(ctx, "localsecret.env.Ping") }

// Get reads one variable. One that is not set, or that must stay hidden, is empty.
//
// The variables are searched, not asked for by name: on Windows a lookup ignores case, and a
// secret would have as many names as spellings.
func (e *environment) Get(ctx context.Context, name string, _ map[string]string) (map[string]string, error) {
	const op fault.Op = "localsecret.env.Get"
	if err := e.check(ctx, op); err != nil {
		return nil, err
	}
	for _, entry := range e.environ() {
		if known, value, ok := e.secret(entry); ok && known == name {
			return own(name, value), nil
		}
	}
	return own(name, ""), nil
}

// GetAll reads every variable with the prefix.
func (e *environment) GetAll(ctx context.Context, _ map[string]string) (map[string]map[string]string, error) {
	const op fault.Op = "localsecret.env.GetAll"
	if err := e.check(ctx, op); err != nil {
		return nil, err
	}
	all := map[string]map[string]string{}
	for _, entry := range e.environ() {
		if name, value, ok := e.secret(entry); ok {
			if _, twice := all[name]; !twice { // the first counts, as when one is asked for
				all[name] = own(name, value)
			}
		}
	}
	return all, nil
}

// secret takes an entry of the environment apart; ok is false when it is not one of the secrets.
func (e *environment) secret(entry string) (name, value string, ok bool) {
	variable, value, ok := strings.Cut(entry, "=")
	if !ok || hidden(variable) {
		return "", "", false
	}
	name, ok = strings.CutPrefix(variable, e.prefix)
	return name, value, ok && name != ""
}

// hidden are variables that belong to the sidecar: with its tokens a caller could pass for it.
func hidden(variable string) bool {
	upper := strings.ToUpper(variable)
	return upper == "APP_API_TOKEN" || strings.HasPrefix(upper, "DAPR_")
}
