// Package middleware is the HTTP middleware that Component resources of the types
// middleware.http.* configure.
//
// A middleware stands in two places: around the requests of the HTTP API (httpPipeline), and
// around calls to an app that speaks HTTP (appHttpPipeline). Each is one small file here; what
// they share is deciding from a request's head alone (gate.go).
//
// What it leaves to others: reading resources and putting pipelines in order (cmd), everything
// that concerns a call rather than HTTP (runtime/policy), the API token, CORS and body limits
// (the edge itself). gRPC is not affected, as in Dapr.
//
// Start at All and Middleware.
package middleware

import (
	"log/slog"
	"net/http"
	"strings"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/components/fault"
)

// Env is what the house lends a middleware.
type Env struct {
	// Log is the component's logger. Required.
	Log *slog.Logger
	// Transport is how a middleware reaches servers of its own. Nil means directly, or over
	// the proxy that the environment names, with the system's certificate authorities.
	Transport http.RoundTripper
}

// Middleware is one configured middleware. It may stand in several pipelines, which then share
// its state, and is safe for concurrent use.
type Middleware struct {
	// API wraps requests of the HTTP API.
	API httpapi.Middleware
	// App wraps calls to the app.
	App httpapi.CallMiddleware
	// Close ends what the middleware runs in the background and waits for it. Nil when there
	// is nothing to end. Requests that come later fail or are refused.
	Close func()
}

// Factory makes middleware of one type.
type Factory struct {
	// Type is the component type, "middleware.http.ratelimit".
	Type string
	// Doc says in a sentence what the middleware does.
	Doc string
	// Guards tells that the middleware refuses requests: without it more gets through.
	Guards bool
	// Config returns a pointer to a configuration struct that holds the defaults, for
	// conf.Decode.
	Config func() any
	// Open makes a middleware from a decoded and valid configuration. It does no I/O and
	// starts nothing.
	Open func(env Env, config any) (*Middleware, error)
}

// prefix begins every component type of the package.
const prefix = "middleware.http."

// All lists the middleware there is, by type.
func All() []Factory {
	return []Factory{
		factory("bearer", "Admits requests with a JSON Web Token of one issuer.", true, defaultBearer, newBearer),
		factory("ratelimit", "Limits the requests per second of each client and path.", true, defaultRateLimit, newRateLimit),
		factory("routeralias", "Gives paths other names.", false, defaultRouterAlias, newRouterAlias),
		factory("routerchecker", "Refuses requests whose path does not match an expression.", true, defaultRouterChecker, newRouterChecker),
		factory("uppercase", "Turns bodies to upper case, to show that a pipeline works.", false, defaultUppercase, newUppercase),
	}
}

// Find returns the factory of a component type and version. The case of the last part of the
// type does not count; the versions "", v0 and v1 are the same, and the only ones.
func Find(typ, version string) (Factory, bool) {
	switch version {
	case "", "v0", "v1":
	default:
		return Factory{}, false
	}
	name, ok := strings.CutPrefix(typ, prefix)
	if !ok {
		return Factory{}, false
	}
	for _, f := range All() {
		if strings.EqualFold(f.Type, prefix+name) {
			return f, true
		}
	}
	return Factory{}, false
}

// Types lists all component types, for messages that suggest one.
func Types() []string {
	var out []string
	for _, f := range All() {
		out = append(out, f.Type)
	}
	return out
}

// factory ties a configuration's type to the constructor that takes it.
func factory[C any](name, doc string, guards bool, config func() *C, open func(Env, *C) (*Middleware, error)) Factory {
	return Factory{Type: prefix + name, Doc: doc, Guards: guards,
		Config: func() any { return config() },
		Open: func(env Env, c any) (*Middleware, error) {
			typed, ok := c.(*C)
			if !ok {
				return nil, fault.New("middleware.Open", fault.Internal, "%s%s: the configuration is %T, want %T", prefix, name, c, typed)
			}
			return open(env, typed)
		}}
}
