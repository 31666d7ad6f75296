package peerapi

import "github.com/mecha-project/mecha/runtime/call"

// The codec, for tests of the bytes on the wire.
var (
	AppendRequest  = appendRequest
	AppendResponse = appendResponse
	AppendTrailer  = appendTrailer
	AppendError    = appendError
	DecodeRequest  = decodeRequest
	DecodeEnd      = decodeEnd
)

// DecodeAnswer also tells what kind of body follows.
func DecodeAnswer(head []byte) (resp *call.Response, streamed, upgrade bool, err error) {
	return decodeAnswer(head)
}
