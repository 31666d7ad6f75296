// Package localkeys is providers of keys whose keys this process holds itself: files in a folder
// (folder.go), or a JSON Web Key Set (jwks.go). The app that asks for an operation never sees the
// keys; the sidecar does, and so does who may read the folder or the set.
//
// The two differ only in where a key of a name comes from. provider.go is what they share: the
// contract on top of a key. key.go reads keys in their several forms; symmetric.go and asymmetric.go
// are the algorithms, sm.go those of the Chinese standards.
//
// Nothing of a key, and nothing of what was encrypted, stands in an error or in the log.
package localkeys

import "github.com/mecha-project/mecha/components/block"

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "localkeys",
		Doc:  "Keys that the sidecar holds itself: files in a folder, or a JSON Web Key Set.",
		Parts: []block.Part{
			block.CryptoPart("dapr.localstorage", "Keys from files in a folder of this host.", DefaultFolderConfig, NewFolder),
			block.CryptoPart("dapr.jwks", "Keys from a JSON Web Key Set: in the metadata, in a file or at a URL.", DefaultJWKSConfig, NewJWKS),
		},
	}
}
