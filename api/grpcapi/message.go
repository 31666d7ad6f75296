package grpcapi

import "github.com/mecha-project/mecha/components/fault"

// A proxied call's body is a sequence of messages, each with the five-byte prefix that gRPC
// itself uses: a flag byte (1: compressed, as grpc-encoding says) and the length, big-endian.
const prefixLen = 5

var errBadMessage = fault.New("grpcapi.message", fault.Internal, "the proxied call's body is not a sequence of gRPC messages")
