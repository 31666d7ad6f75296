package memory

// Hub is a broker in memory. Several PubSub components of one process may share one: tests of
// two sidecars do. A component opened by NewPubSub has a Hub of its own.
type Hub struct {
	limits PubSubConfig
	logs   *logs
	ledger *ledger
}

// NewHub makes an empty broker. Limits hold per topic; nil means the defaults.
func NewHub(limits *PubSubConfig) *Hub {
	if limits == nil {
		limits = DefaultPubSubConfig()
	}
	h := &Hub{limits: *limits, ledger: newLedger()}
	h.logs = newLogs(&h.limits)
	return h
}
