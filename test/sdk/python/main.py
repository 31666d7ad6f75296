"""Walks the official Python SDK through the scenario of test/sdk: "open" between an HTTP app and a
gRPC app that it serves itself, "locked" through TLS with an API token. It prints one line per step
and exits with 1 if any failed."""

import asyncio
import os
import sys
import time
import urllib.request
import warnings

# The SDK reads its environment when it is imported; it stands beside the HTTP app.
if 'WEB_HTTP_PORT' in os.environ:
    os.environ['DAPR_HTTP_PORT'] = os.environ['WEB_HTTP_PORT']
    os.environ['DAPR_GRPC_PORT'] = os.environ['WEB_GRPC_PORT']

from dapr.clients import DaprClient
from dapr.clients.exceptions import DaprGrpcError, DaprHttpError
from dapr.conf import settings
from grpc import RpcError, StatusCode

from crypto import crypto_mode
from report import Report, expect, refused


def code(*want):
    """Judges the code of an RpcError and, if given, the SDK's error code."""

    def check(e):
        got = [e.code().name] + ([e.error_code()] if len(want) > 1 else [])
        expect('the code', got, list(want))

    return check


def open_mode(r):
    from apps import PUBSUBS, serve_rpc, serve_web
    from blocks import binding_steps, configuration_steps, lock_steps, secret_steps
    from pubsub import pubsub_steps, shared_steps, stream_steps
    from report import Inbox
    from state import state_steps

    inbox = Inbox()
    serve_web(inbox)
    serve_rpc(inbox)
    clients = {}

    def connect():
        clients['web'] = DaprClient()
        settings.DAPR_API_METHOD_INVOCATION_PROTOCOL = 'grpc'
        clients['rpc'] = DaprClient(f'127.0.0.1:{os.environ["RPC_GRPC_PORT"]}')
        settings.DAPR_API_METHOD_INVOCATION_PROTOCOL = 'http'

    r.step('clients wait for their sidecars', connect)
    r.step('both sidecars are healthy', healthy)
    for store in ['mem-state', 'emb-state', 'redis-state']:
        with r.under(store):
            state_steps(r, clients['rpc'], store)
    for pubsub in PUBSUBS:
        for side in ['web', 'rpc']:
            with r.under(f'{side}: {pubsub}'):
                pubsub_steps(r, clients[side], side, pubsub, inbox)
        with r.under(pubsub):
            stream_steps(r, clients['rpc'], pubsub, inbox)
    for store in ['emb-config', 'redis-config']:
        with r.under(store):
            configuration_steps(r, clients['rpc'], store)
    for store in ['emb-lock', 'redis-lock']:
        with r.under(store):
            lock_steps(r, clients['rpc'], store)
    with r.under('secrets'):
        secret_steps(r, clients['rpc'])
    with r.under('bindings'):
        binding_steps(r, clients['rpc'], inbox)
    shared_steps(r, clients, inbox)
    with r.under('invoke'):
        invoke_steps(r, clients['web'], clients['rpc'])
    with r.under('async'):
        asyncio.run(async_steps(r))
    with r.under('metadata'):
        metadata_steps(r, clients['rpc'])


def healthy():
    for port in [os.environ['WEB_HTTP_PORT'], os.environ['RPC_HTTP_PORT']]:
        end = time.time() + 15
        while True:
            try:
                with urllib.request.urlopen(f'http://127.0.0.1:{port}/v1.0/healthz') as resp:
                    if resp.status == 204:
                        break
            except OSError:
                if time.time() > end:
                    raise
            time.sleep(0.02)


def invoke_steps(r, web, rpc):
    web_app, rpc_app = os.environ['WEB_APP_ID'], os.environ['RPC_APP_ID']

    def http_to_http(verb):
        body = b'' if verb == 'GET' else b'{"n":1}'
        resp = web.invoke_method(
            web_app, 'about', body, content_type='application/json', http_verb=verb, http_querystring=(('a', '1'), ('b', 'c d')), metadata=(('x-mine', 'theirs'),)
        )
        seen = resp.json()
        expect('what the app saw', [seen['verb'], seen['query'], seen['body'], seen['type'], seen['mine'], seen['token']], [verb, 'a=1&b=c+d', body.decode(), 'application/json', 'theirs', True])

    for verb in ['GET', 'POST', 'PUT', 'DELETE', 'PATCH']:
        r.step(f'HTTP client, HTTP app: {verb}', lambda verb=verb: http_to_http(verb))

    def grpc_to_http():
        resp = rpc.invoke_method(web_app, 'about', b'{"n":1}', content_type='application/json', http_verb='POST', http_querystring=(('a', '1'),))
        seen = resp.json()
        expect('what the app saw', [seen['verb'], seen['query'], seen['body'], seen['caller']], ['POST', 'a=1', '{"n":1}', rpc_app])
        expect('dapr-http-status', dict(resp.headers).get('dapr-http-status'), ['200'])

    def http_to_grpc():
        resp = web.invoke_method(rpc_app, 'echo', b'hi', content_type='text/plain', http_verb='POST')
        expect('the answer', [resp.text(), resp.content_type], ['hi', 'text/plain'])

    def grpc_to_grpc():
        resp = rpc.invoke_method(rpc_app, 'echo', b'hi', content_type='text/plain', http_verb='POST')
        expect('the answer', [resp.text(), resp.content_type], ['hi', 'text/plain'])

    def large():
        data = os.urandom(2 << 20)
        expect('the answer', rpc.invoke_method(rpc_app, 'echo', data, content_type='application/octet-stream', http_verb='POST').data == data, True)

    def teapot_http():
        def check(e):
            expect('the status', e.status_code, 418)

        refused(DaprHttpError, lambda: web.invoke_method(web_app, 'teapot', b'', http_verb='GET'), check)

    def unknown_http():
        def check(e):
            expect('the error', [e.status_code, e._error_code, 'no-such-app' in str(e)], [500, 'ERR_DIRECT_INVOKE', True])

        refused(DaprHttpError, lambda: web.invoke_method('no-such-app', 'x', b'', http_verb='GET'), check)

    def proxied():
        # The SDK recommends proxying for gRPC apps: any stub on a channel to the sidecar.
        import grpc
        from dapr.proto.runtime.v1 import appcallback_pb2_grpc
        from google.protobuf.empty_pb2 import Empty

        with grpc.insecure_channel(f'127.0.0.1:{os.environ["WEB_GRPC_PORT"]}') as channel:
            appcallback_pb2_grpc.AppCallbackHealthCheckStub(channel).HealthCheck(Empty(), metadata=(('dapr-app-id', rpc_app),), timeout=5)

    r.step('gRPC client, HTTP app', grpc_to_http)
    r.step('HTTP client, gRPC app', http_to_grpc)
    r.step('gRPC client, gRPC app', grpc_to_grpc)
    r.step('two megabytes both ways', large)
    r.step('a protobuf message', lambda: protobuf_call(rpc, rpc_app))
    r.step("the app's token", lambda: token_arrives(rpc, rpc_app))
    r.step('a status of the HTTP app', teapot_http)
    r.step('a status of the HTTP app, over gRPC', lambda: refused(RpcError, lambda: rpc.invoke_method(web_app, 'teapot', b'', http_verb='GET'), code('UNKNOWN')))
    r.step('a method the gRPC app lacks', lambda: refused(RpcError, lambda: rpc.invoke_method(rpc_app, 'missing', b'', http_verb='GET'), lambda e: expect('the text', 'missing' in e.details(), True)))
    r.step('an unknown app', unknown_http)
    r.step('an unknown app, over gRPC', lambda: refused(RpcError, lambda: rpc.invoke_method('no-such-app', 'x', b'', http_verb='GET'), code('INTERNAL')))
    r.step('a gRPC service of the app, proxied', proxied)


def protobuf_call(rpc, app):
    from google.protobuf.wrappers_pb2 import StringValue

    heard = StringValue()
    rpc.invoke_method(app, 'shout', StringValue(value='proto'), http_verb='POST').unpack(heard)
    expect('the answer', heard.value, 'PROTO')


def token_arrives(rpc, app):
    resp = rpc.invoke_method(app, 'token', b'', http_verb='POST')
    expect('the content type', resp.content_type, 'application/json; charset=utf-8')
    expect('the answer', resp.json(), {'right': True})


async def async_steps(r):
    from dapr.aio.clients import DaprClient as AsyncClient

    async with AsyncClient() as c:
        outcome = {}

        async def calls():
            await c.save_state('mem-state', 'async', 'v')
            outcome['value'] = (await c.get_state('mem-state', 'async')).text()
            outcome['seen'] = (await c.invoke_method(os.environ['WEB_APP_ID'], 'about', b'x', http_verb='POST')).json()['body']
            await c.publish_event('mem-pubsub', 'nobody-listens', 'x')
            outcome['many'] = await asyncio.gather(*(c.get_state('mem-state', 'async') for _ in range(50)))

        error = None
        try:
            await asyncio.wait_for(calls(), 15)
        except Exception as e:  # told by the step
            error = e

        def judge():
            if error:
                raise error
            expect('what came back', [outcome['value'], outcome['seen'], len(outcome['many'])], ['v', 'x', 50])

        r.step('state, invocation and publishing', judge)


def metadata_steps(r, c):
    def set_and_get():
        c.set_metadata('colour', 'blue')
        m = c.get_metadata()
        expect('id and colour', [m.application_id, m.extended_metadata.get('colour')], [os.environ['RPC_APP_ID'], 'blue'])
        expect(
            'the components',
            ','.join(sorted(f'{x.name} {x.type} {x.version}' for x in m.registered_components)),
            os.environ['COMPONENTS'],
        )

    r.step('set and get', set_and_get)


def locked_mode(r):
    clients = []

    def token_works():
        c = clients[0]
        c.save_state('mem-state', 'k', 'v')
        expect('the value', c.get_state('mem-state', 'k').text(), 'v')

    def wrong(token):
        old, settings.DAPR_API_TOKEN = settings.DAPR_API_TOKEN, token
        try:
            with DaprClient() as c:
                refused(DaprGrpcError, lambda: c.get_state('mem-state', 'k'), code('UNAUTHENTICATED'))
                refused(DaprHttpError, lambda: c.invoke_method('x', 'y', b''), lambda e: expect('the status', e.status_code, 401))
        finally:
            settings.DAPR_API_TOKEN = old

    def invocation():
        refused(DaprHttpError, lambda: clients[0].invoke_method('no-such-app', 'y', b''), lambda e: expect('the status', e.status_code, 500))

    r.step('a client from the environment', lambda: clients.append(DaprClient()))
    r.step('a call with the token', token_works)
    r.step('HTTP with the token', invocation)
    r.step('a wrong token', lambda: wrong('guess'))
    r.step('no token', lambda: wrong(None))
    r.step('shutdown', lambda: clients[0].shutdown())


def main():
    warnings.simplefilter('ignore')  # some methods are deprecated and yet in use
    r = Report()
    {'open': open_mode, 'locked': locked_mode, 'crypto': crypto_mode}[sys.argv[1]](r)
    print(f'DONE {r.passed} passed, {r.failed} failed', flush=True)
    # The servers' threads would keep the interpreter.
    os._exit(1 if r.failed else 0)


if __name__ == '__main__':
    main()
