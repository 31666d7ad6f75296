"""The two apps: one on FastAPI with the SDK's extension, one on the SDK's gRPC server."""

import json
import os
import threading

import uvicorn
from dapr.clients.grpc._response import TopicEventResponse
from dapr.ext.fastapi import DaprApp
from dapr.ext.grpc import App, InvokeMethodResponse, Rule
from fastapi import Body, FastAPI, Request, Response
from google.protobuf.wrappers_pb2 import StringValue

PUBSUBS = ['mem-pubsub', 'emb-pubsub']


def serve_web(inbox):
    app = FastAPI()
    dapr = DaprApp(app)

    def keep(pubsub, topic, answer=None, **options):
        def handler(event=Body()):
            inbox.put(f'web/{pubsub}/{topic}', event)
            return answer

        dapr.subscribe(pubsub=pubsub, topic=f'web-{topic}' if topic != 'shared' else topic, **options)(handler)

    for pubsub in PUBSUBS:
        keep(pubsub, 'plain')
        keep(pubsub, 'shared')
        keep(pubsub, 'raw', metadata={'rawPayload': 'true'})
        keep(pubsub, 'dropped', answer={'status': 'DROP'}, dead_letter_topic='web-dead')
        keep(pubsub, 'dead')
        subscribe_retried(dapr, pubsub, inbox)

    @app.post('/declared')
    def declared(event=Body()):
        inbox.put(f'web/{event["pubsubname"]}/declared', event)

    @app.post('/declared-special')
    def declared_special(event=Body()):
        inbox.put(f'web/{event["pubsubname"]}/declared-special', event)

    # The extension has nothing for input bindings; they are plain routes.
    @app.post('/tick')
    async def tick(request: Request):
        inbox.put('web/tick', (request.headers.get('readTimeUTC'), await request.body()))

    @app.api_route('/about', methods=['GET', 'POST', 'PUT', 'DELETE', 'PATCH'])
    async def about(request: Request):
        return {
            'verb': request.method,
            'query': request.url.query,
            'type': request.headers.get('content-type'),
            'body': (await request.body()).decode(),
            'caller': request.headers.get('dapr-caller-app-id'),
            'mine': request.headers.get('x-mine'),
            'token': request.headers.get('dapr-api-token') == os.environ['APP_API_TOKEN'],
        }

    @app.get('/teapot')
    def teapot():
        return Response('short and stout', status_code=418, headers={'X-Spout': 'yes'})

    server = uvicorn.Server(uvicorn.Config(app, host='127.0.0.1', port=int(os.environ['WEB_APP_PORT']), log_level='warning'))
    threading.Thread(target=server.run, daemon=True).start()


def subscribe_retried(dapr, pubsub, inbox):
    seen = set()

    def retried(event=Body()):
        if event['id'] not in seen:
            seen.add(event['id'])
            return {'status': 'RETRY'}
        inbox.put(f'web/{pubsub}/retried', event)

    dapr.subscribe(pubsub=pubsub, topic='web-retried')(retried)


def serve_rpc(inbox):
    app = App()
    app.register_health_check(lambda: None)

    def keep(pubsub, topic, answer=None, rule=None, name=None, **options):
        def handler(event):
            inbox.put(f'rpc/{pubsub}/{name or topic}', event)
            return TopicEventResponse(answer) if answer else None

        handler.__name__ = name or topic  # the SDK makes the route's path of it
        app.subscribe(pubsub_name=pubsub, topic=f'rpc-{topic}' if topic != 'shared' else topic, rule=rule, **options)(handler)

    for pubsub in PUBSUBS:
        keep(pubsub, 'plain')
        keep(pubsub, 'shared')
        keep(pubsub, 'raw', metadata={'rawPayload': 'true'})
        # This SDK cannot name a default route beside rules; what no rule takes is dropped.
        keep(pubsub, 'routed', name='common', rule=Rule('event.type != "unmatched"', 2))
        keep(pubsub, 'routed', name='special', rule=Rule('event.type == "special"', 1))
        keep(pubsub, 'dropped', answer='drop', dead_letter_topic='rpc-dead')
        keep(pubsub, 'dead')

    @app.binding('tick')
    def tick(request):
        inbox.put('rpc/tick', (request.binding_metadata.get('readTimeUTC'), request.data))

    @app.method('echo')
    def echo(request):
        return InvokeMethodResponse(request.data, request.content_type)

    @app.method('shout')
    def shout(request):
        heard = StringValue()
        request.unpack(heard)
        return StringValue(value=heard.value.upper())

    @app.method('token')
    def token(request):
        return json.dumps({'right': dict(request.metadata).get('dapr-api-token') in (os.environ['APP_API_TOKEN'], [os.environ['APP_API_TOKEN']])})

    threading.Thread(target=app.run, args=(int(os.environ['RPC_APP_PORT']), '127.0.0.1'), daemon=True).start()
