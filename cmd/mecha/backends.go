package main

import (
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/configfile"
	"github.com/mecha-project/mecha/components/cron"
	"github.com/mecha-project/mecha/components/dns"
	"github.com/mecha-project/mecha/components/hostdir"
	"github.com/mecha-project/mecha/components/httpbinding"
	"github.com/mecha-project/mecha/components/kafka"
	"github.com/mecha-project/mecha/components/kubernetes"
	"github.com/mecha-project/mecha/components/localkeys"
	"github.com/mecha-project/mecha/components/localsecret"
	"github.com/mecha-project/mecha/components/localstorage"
	"github.com/mecha-project/mecha/components/mdns"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/components/mqtt"
	"github.com/mecha-project/mecha/components/mysql"
	"github.com/mecha-project/mecha/components/nats"
	"github.com/mecha-project/mecha/components/postgres"
	"github.com/mecha-project/mecha/components/rabbitmq"
	"github.com/mecha-project/mecha/components/redis"
	"github.com/mecha-project/mecha/components/smtp"
	"github.com/mecha-project/mecha/components/sqlite"
	"github.com/mecha-project/mecha/components/staticfile"
	"github.com/mecha-project/mecha/components/vault"
)

// backends is the list of everything linked into this binary. A new backend is a line here.
func backends() (*block.Set, error) {
	return block.NewSet(
		memory.Backend(),
		nats.Backend(),
		configfile.Backend(),
		cron.Backend(),
		httpbinding.Backend(),
		localstorage.Backend(),
		rabbitmq.Backend(),
		mqtt.Backend(),
		kafka.Backend(),
		smtp.Backend(),
		redis.Backend(),
		localsecret.Backend(),
		localkeys.Backend(),
		vault.Backend(),
		kubernetes.Backend(),
		postgres.Backend(),
		mysql.Backend(),
		// Name resolution.
		hostdir.Backend(),
		mdns.Backend(),
		dns.Backend(),
		staticfile.Backend(),
		sqlite.Backend(),
	)
}
