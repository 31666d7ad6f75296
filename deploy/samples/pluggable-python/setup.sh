#!/bin/sh
# Makes a virtual environment in venv and the protocol's Python files in gen. Needs python3 and go.
set -e
cd "$(dirname "$0")"
python3 -m venv venv
venv/bin/pip -q install grpcio grpcio-tools grpcio-reflection grpcio-status
protos=$(go list -m -f '{{.Dir}}' github.com/dapr/dapr)
mkdir -p gen
venv/bin/python -m grpc_tools.protoc -I "$protos" --python_out=gen --grpc_python_out=gen \
  "$protos"/dapr/proto/components/v1/state.proto "$protos"/dapr/proto/components/v1/common.proto
