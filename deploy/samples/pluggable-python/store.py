"""A state store in Python: Dapr's component protocol over a dictionary.

    python store.py SOCKET

Values live as long as this process. Each component resource that uses the socket has its own.
"""
import itertools
import os
import sys
from concurrent import futures

import grpc
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from google.rpc import status_pb2
from google.protobuf import any_pb2

from dapr.proto.components.v1 import common_pb2, state_pb2, state_pb2_grpc

versions = itertools.count(1)


def refuse(context, code, text):
    """Says that an etag does not hold (FAILED_PRECONDITION), in the protocol's words."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.BadRequest(field_violations=[
        error_details_pb2.BadRequest.FieldViolation(field="etag", description=text)]))
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code.value[0], message=text, details=[detail])))


class Store(state_pb2_grpc.StateStoreServicer):
    def __init__(self):
        self.instances = {}  # by component name: key -> (value, version)

    def items(self, context):
        name = dict(context.invocation_metadata())["x-component-instance"]
        return self.instances[name]

    def Init(self, request, context):
        name = dict(context.invocation_metadata())["x-component-instance"]
        print("init", name, dict(request.metadata.properties), flush=True)
        self.instances.setdefault(name, {})
        return state_pb2.InitResponse()

    def Features(self, request, context):
        return common_pb2.FeaturesResponse(features=["ETAG"])

    def Ping(self, request, context):
        return common_pb2.PingResponse()

    def Get(self, request, context):
        if request.key not in self.items(context):
            return state_pb2.GetResponse()
        value, version = self.items(context)[request.key]
        return state_pb2.GetResponse(data=value, etag=state_pb2.Etag(value=version))

    def check(self, request, context):
        _, version = self.items(context).get(request.key, (None, None))
        if request.HasField("etag") and request.etag.value != version:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "the item has another version")
        first = request.options.concurrency == state_pb2.StateOptions.CONCURRENCY_FIRST_WRITE
        if first and not request.HasField("etag") and version is not None:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "the item exists")

    def Set(self, request, context):
        self.check(request, context)
        self.items(context)[request.key] = (request.value, str(next(versions)))
        return state_pb2.SetResponse()

    def Delete(self, request, context):
        self.check(request, context)
        self.items(context).pop(request.key, None)
        return state_pb2.DeleteResponse()


socket = sys.argv[1]
if os.path.exists(socket):
    os.remove(socket)  # of an earlier run
# One worker: calls happen one after another, so nothing needs a lock.
server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
state_pb2_grpc.add_StateStoreServicer_to_server(Store(), server)
reflection.enable_server_reflection([state_pb2.DESCRIPTOR.services_by_name["StateStore"].full_name, reflection.SERVICE_NAME], server)
server.add_insecure_port("unix://" + socket)
server.start()
print("serving", socket, flush=True)
server.wait_for_termination()
