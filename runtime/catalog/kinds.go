package catalog

import (
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
)

// callKinds are the kinds of calls that components of a block take.
var callKinds = map[block.Kind]call.Kind{
	block.KindState: call.State, block.KindPubSub: call.Publish, block.KindSecret: call.Secret, block.KindLock: call.Lock,
	block.KindConfig: call.Config, block.KindBinding: call.Binding, block.KindCrypto: call.Crypto, block.KindCache: call.Cache,
}

// CallKind is the kind of calls that a component of a type ("state.redis") takes; ok is false for
// types that take none.
func CallKind(typ string) (kind call.Kind, ok bool) {
	category, _, _ := strings.Cut(typ, ".")
	kind, ok = callKinds[block.Kind(category)]
	return kind, ok
}

// CallKinds are the kinds of calls that components take.
func CallKinds() []call.Kind {
	out := make([]call.Kind, 0, len(callKinds))
	for _, k := range callKinds {
		out = append(out, k)
	}
	return out
}
