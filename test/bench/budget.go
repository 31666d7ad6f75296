package main

// budget is what a cell may cost. Figures are for a machine with two cores that others use too.
type budget struct {
	row           string
	size, callers int
	limit, goal   float64 // of what measure says; goal is where we want to end
	measure       measure
	source        string // why this much
}

// measure is what a budget limits.
type measure string

const (
	perRequest measure = "CPU-µs of the sidecars per request"
	addedP50   measure = "µs added to the direct p50"
)

// budgets were set from measurements of daprd 1.18 on the same kind of machine, with the same
// payloads and callers, and of what the way costs without any sidecar.
var budgets = []budget{
	{"http/invoke", 1 << 10, 32, 60, 30, perRequest, "daprd 230; client and server alone 26"},
	{"grpc/proxy", 1 << 10, 32, 60, 30, perRequest, "daprd 121; client and server alone 36"},
	{"http/invoke", 64 << 10, 32, 300, 150, perRequest, "daprd 1454; client and server alone 200"},
	// daprd's 1454 CPU-µs for 64 KiB do not fit into 400 µs, so its figure is one of 1 KiB.
	{"http/invoke", 1 << 10, 1, 120, 60, addedP50, "daprd 400"},
	// Both edges in one process and no hop between: never dearer than the way through two.
	{"http/self", 1 << 10, 32, 60, 30, perRequest, "as http/invoke"},
	{"grpc/self", 1 << 10, 32, 60, 30, perRequest, "as grpc/proxy"},

	// The figures for a store were set with Redis behind the sidecar (daprd 48). Memory is
	// nearer and the embedded node about as far, so neither may cost the sidecar more. A write
	// carries the payload the other way.
	{"state/memory/grpc-get", 1 << 10, 32, 25, 15, perRequest, "state get on Redis; daprd 48"},
	{"state/memory/grpc-set", 1 << 10, 32, 25, 15, perRequest, "as the get"},
	{"state/memory/http-get", 1 << 10, 32, 20, 12, perRequest, "state get on Redis; daprd 48"},
	{"state/memory/http-set", 1 << 10, 32, 20, 12, perRequest, "as the get"},
	{"state/embedded/grpc-get", 1 << 10, 32, 25, 15, perRequest, "state get on Redis; daprd 48"},
	{"state/embedded/grpc-set", 1 << 10, 32, 25, 15, perRequest, "as the get"},
	{"state/embedded/http-get", 1 << 10, 32, 20, 12, perRequest, "state get on Redis; daprd 48"},
	{"state/embedded/http-set", 1 << 10, 32, 20, 12, perRequest, "as the get"},

	{"state/redis/grpc-get", 1 << 10, 32, 25, 15, perRequest, "daprd 48"},
	{"state/redis/grpc-set", 1 << 10, 32, 25, 15, perRequest, "as the get"},
	{"state/redis/http-get", 1 << 10, 32, 20, 12, perRequest, "daprd 48"},
	{"state/redis/http-set", 1 << 10, 32, 20, 12, perRequest, "as the get"},

	// A hit may cost 2 µs more than the call itself, for which the state in memory stands.
	{"cache/memory/grpc-hit", 1 << 10, 32, 13, 11, perRequest, "state/memory/grpc-get and 2"},
	{"cache/embedded/grpc-hit", 1 << 10, 32, 13, 11, perRequest, "as from memory: the entry is near"},
	{"cache/redis/grpc-hit", 1 << 10, 32, 13, 11, perRequest, "as from memory: the entry is near"},

	{"pubsub/memory/publish", 1 << 10, 32, 25, 15, perRequest, "publish on Redis Streams; daprd 66"},
	{"pubsub/memory/deliver", 1 << 10, 32, 50, 30, perRequest, "daprd 209"},
	{"pubsub/embedded/publish", 1 << 10, 32, 25, 15, perRequest, "publish on Redis Streams; daprd 66"},
	{"pubsub/embedded/deliver", 1 << 10, 32, 80, 50, perRequest, "Redis Streams between two sidecars; daprd 212"},

	// 150 000 messages a second for each core that the sidecar has to itself.
	{"messaging/memory/consume", 256, 1, 6.67, 3.3, perRequest, "150 000 messages a second and core"},
	{"messaging/embedded/consume", 256, 1, 6.67, 3.3, perRequest, "150 000 messages a second and core"},
	{"messaging/embedded/publish-deliver", 256, 1, 150, 75, addedP50, "added over a client of the broker"},
}

// Budgets of a sidecar that does nothing, alone on the host, without components.
var idleBudgets = map[string]budget{
	"anonymous memory, MiB":         {limit: 12, goal: 8, source: "daprd 20.5"},
	"proportional share (PSS), MiB": {limit: 45, goal: 30, source: "daprd 119"},
	"CPU, ms per second":            {limit: 0.25, goal: 0, source: "daprd 0.25 (0.025 %); no periodic wake-ups wanted"},
	"binary, MB":                    {limit: 60, goal: 60, source: "daprd 122 with the stable components, 215 with all"},
	"exec to healthy, ms":           {limit: 25, goal: 12, source: "daprd 51"},
}

// find returns the budget of a cell, or nil. Only cells of one size and one number of callers
// have one: the rest is for comparison.
func findBudget(c *cell) *budget {
	for i := range budgets {
		if b := &budgets[i]; b.row == c.name && b.size == c.size && b.callers == c.callers {
			return b
		}
	}
	return nil
}

// verdict judges a figure.
func (b *budget) verdict(v float64) string {
	switch {
	case v > b.limit:
		return "over"
	case v <= b.goal:
		return "within, at the goal"
	}
	return "within"
}
