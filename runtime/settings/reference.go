package settings

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// environmentDocs are the variables readEnv reads, for the reference page.
var environmentDocs = [][2]string{
	{"NAMESPACE", "namespace of the sidecar; unset means `default`, except that resources are then not filtered by namespace"},
	{"POD_NAME", "value of `{podName}` in component metadata"},
	{"DAPR_API_TOKEN", "token that callers of the API must show"},
	{"APP_API_TOKEN", "token shown to the application"},
	{"DAPR_HOST_IP", "address announced to other sidecars"},
	{"DAPR_ENV_KEYS", "names, separated by blanks, of the only variables component metadata may refer to"},
	{"DAPR_COMPONENTS_SOCKETS_FOLDER", "folder of pluggable components' sockets"},
	{"DAPR_HTTP_DISABLE_H2C", "true turns off HTTP/2 without TLS on the HTTP API"},
	{"DAPR_GRPC_MAX_CONN_IDLE", "duration after which idle gRPC connections are closed"},
	{"DAPR_TRUST_ANCHORS, DAPR_CONTROLPLANE_NAMESPACE, DAPR_CONTROLPLANE_TRUST_DOMAIN, DAPR_SCHEDULER_HOST_ADDRESS_DNS_A", "read; no effect, as this version has no control plane"},
	{"MECHA_LABELS", "labels announced to other sidecars, for routes to subsets: `version=v2,team=x`; a wrong one stops the start"},
	{"MECHA_ZONE", "where this sidecar is, `region/zone`; announced as the label `zone`, and where `lb.locality` begins"},
	{"MECHA_RUNTIME_DIR", "default of `--runtime-dir`"},
	{"OTEL_*", "read by the trace exporters"},
}

// Reference is the reference page of flags and environment, in Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	fs := pflag.NewFlagSet("sidecar", pflag.ContinueOnError)
	Flags(fs, Defaults())
	b.WriteString("| flag | type | default | meaning | status |\n|---|---|---|---|---|\n")
	fs.VisitAll(func(f *pflag.Flag) {
		def := f.DefValue
		if def != "" {
			def = "`" + def + "`"
		}
		status := flagStatus(f)
		if status == statusNoEffect {
			status += ": " + absent(f.Name)
		}
		fmt.Fprintf(&b, "| `--%s` | %s | %s | %s | %s |\n", f.Name, f.Value.Type(), def, f.Usage, status)
	})
	b.WriteString(referenceRefusals)
	b.WriteString("| variable | meaning |\n|---|---|\n")
	for _, e := range environmentDocs {
		fmt.Fprintf(&b, "| `%s` | %s |\n", e[0], e[1])
	}
	return b.String()
}

const referenceHead = `# Flags and environment of the sidecar

Generated from ` + "`runtime/settings`" + `; rewrite with ` + "`go test ./runtime/settings -run Reference -update`" + `.

` + "`mecha sidecar`" + ` takes the flags of ` + "`daprd`" + `. Long flags take one dash or two; a value follows after ` + "`=`" + ` or as the next
argument, for truth values only after ` + "`=`" + `. Arguments that are no flags are ignored with a warning.

Exit codes: 2 with the usage for an unknown flag or a value of the wrong form; 1 for settings that contradict each
other, for what is refused below, and for fatal errors later; 0 after a normal shutdown.

Where Mecha differs from Dapr on purpose: the API, the port for other sidecars, the public port and the metrics listen on
loopback unless an address is given (` + "`--dapr-listen-addresses`, `--dapr-internal-grpc-listen-address`, `--dapr-public-listen-address`, `--metrics-listen-address`" + `);
the default port for other sidecars gives way to the next free one.

## Flags

Status: empty means the flag does what its text says; *no effect* flags are accepted, with a warning when set;
*deprecated* flags work, with a warning; *refused* flags stop start-up; *Mecha* flags are not Dapr's.

`

const referenceRefusals = `
## What stops start-up

These ask for protection that this version does not give. Ignoring them would leave you with less than you asked for.

| where | what | without it |
|---|---|---|
| flag | ` + "`--enable-mtls`" + ` | traffic between sidecars is not encrypted |
| Configuration | ` + "`spec.mtls.enabled: true`" + ` | traffic between sidecars is not encrypted |
| Configuration | ` + "`spec.accessControl`" + ` with unknown fields, actions other than ` + "`allow` and `deny`" + `, a policy without ` + "`appId`, `trustDomain` or `namespace`" + `, or an operation without ` + "`name`" + ` | a rule that is not understood protects nothing |
| Configuration | ` + "`spec.secrets`" + ` with unknown fields, a scope without ` + "`storeName`" + `, two for one store, or a ` + "`defaultAccess` other than `allow` and `deny`" + ` | a scope that is not understood protects nothing |
| Configuration | ` + "`spec.api`" + ` rules with a protocol other than ` + "`http` or `grpc`" + ` | the rule hides nothing |
| Component | ` + "`primaryEncryptionKey`, `secondaryEncryptionKey`" + ` of a state store that is no AES key in hexadecimal from a ` + "`secretKeyRef`" + `, or the secondary alone | state is stored in clear |
| Component | topic scopes (` + "`allowedTopics`, `protectedTopics`, `publishingScopes`, `subscriptionScopes`" + `) from a reference that gives nothing | every app may use every topic |
| Component, HTTPEndpoint, tracing headers | ` + "`secretKeyRef`" + ` to a store or secret that does not exist or cannot be read, or to an empty one, without a ` + "`value`" + ` beside it | the password is empty |
| Configuration | a file that is missing or has errors | half of the rules |

A component that is refused is left out instead when it has ` + "`ignoreErrors: true`" + `.

Only a line in the log: a Resiliency with an error (it is left out as a whole), ` + "`spec.workflow`" + `, unknown fields (with the
nearest known name), a ` + "`secretKeyRef`" + ` that cannot be resolved but has a ` + "`value`" + ` beside it (which is used), ` + "`--mode kubernetes`" + `
(resources are read from files). A document that cannot be used is reported and left out; the others of its file are
loaded. ` + "`mecha check`" + ` reports all of these as errors.

## Environment

`
