package grpcapi

import (
	"bytes"
	"compress/gzip"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// gunzip unpacks a message; limit bounds what it becomes, for a bomb is small.
func gunzip(msg []byte, limit int) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(msg))
	if err != nil {
		return nil, status.Error(codes.Internal, "grpc: failed to decompress the received message: "+err.Error())
	}
	r := io.Reader(z)
	if limit > 0 {
		r = io.LimitReader(z, int64(limit)+1)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		return nil, status.Error(codes.Internal, "grpc: failed to decompress the received message: "+err.Error())
	}
	if limit > 0 && len(out) > limit {
		return nil, status.Errorf(codes.ResourceExhausted, "grpc: message after decompression larger than max %d", limit)
	}
	return out, nil
}
