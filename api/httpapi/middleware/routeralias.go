package middleware

import (
	"context"
	"net/url"
	"strings"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// RouterAliasConfig says which paths have other names.
type RouterAliasConfig struct {
	// Routes maps patterns to the paths they stand for, as JSON or YAML: {"/goods/{id}":
	// "/v1.0/invoke/shop/method/goods"}. The first pattern that matches the whole path counts.
	// A {variable} stands for one path segment or a part of one, {variable:expression} for
	// what the expression matches; its value becomes a query parameter.
	Routes string `yaml:"routes"`
}

func defaultRouterAlias() *RouterAliasConfig { return &RouterAliasConfig{} }

// Validate reads the routes.
func (c *RouterAliasConfig) Validate() error {
	if _, err := parseAliases(c.Routes); err != nil {
		return conf.Bad("routes", "%s", err)
	}
	return nil
}

func newRouterAlias(env Env, c *RouterAliasConfig) (*Middleware, error) {
	all, err := parseAliases(c.Routes)
	if err != nil {
		return nil, fault.Wrap("middleware.routeralias", fault.Invalid, err)
	}
	if len(all) == 0 {
		env.Log.Warn("the route alias has no routes and changes nothing")
	}
	return &Middleware{API: all.api, App: all.app}, nil
}

// aliases are tried in the order they were written.
type aliases []alias

// alias is one pattern and the path it stands for.
type alias struct {
	pattern pattern
	path    string // percent-encoded, begins with a slash
	query   string // raw, of the target itself
	method  string // path as an app's method: decoded, clean, no leading slash
}

func (all aliases) api(next httpapi.Handler) httpapi.Handler {
	return func(r *httpapi.Request) {
		if a, vars, ok := all.find(decoded(r.Path)); ok {
			r.Rewrite(a.path, joinQuery(vars, a.query, r.Query))
		}
		next(r)
	}
}

func (all aliases) app(next httpapi.CallHandler) httpapi.CallHandler {
	return func(ctx context.Context, req *call.Request) (*call.Response, error) {
		if req.Protocol == call.GRPC {
			return next(ctx, req)
		}
		if a, vars, ok := all.find("/" + req.Path); ok {
			changed := *req // the caller may send its request again
			changed.Path, changed.Query = a.method, joinQuery(vars, a.query, req.Query)
			req = &changed
		}
		return next(ctx, req)
	}
}

// find returns the first alias of a decoded path, and the path's variables as a raw query.
func (all aliases) find(path string) (a *alias, vars string, ok bool) {
	for i := range all {
		if vars, ok := all[i].pattern.match(path); ok {
			return &all[i], vars, true
		}
	}
	return nil, "", false
}

func joinQuery(parts ...string) string {
	out := ""
	for _, p := range parts {
		switch {
		case p == "":
		case out == "":
			out = p
		default:
			out += "&" + p
		}
	}
	return out
}

func newAlias(from, to string) (a alias, err error) {
	if a.pattern, err = parsePattern(from); err != nil {
		return a, err
	}
	a.path, a.query, _ = strings.Cut(to, "?")
	if !strings.HasPrefix(a.path, "/") {
		return a, fault.New("middleware.routeralias", fault.Invalid, "the target %q of %q must be a path that begins with a slash", to, from)
	}
	plain, err := url.PathUnescape(a.path)
	if err != nil {
		return a, fault.New("middleware.routeralias", fault.Invalid, "the target %q of %q has a bad escape sequence; write %%25 for a percent sign", to, from)
	}
	if a.method, err = call.CleanPath(plain); err != nil {
		return a, fault.New("middleware.routeralias", fault.Invalid, "the target %q of %q cannot be called", to, from).Because(err)
	}
	return a, nil
}
