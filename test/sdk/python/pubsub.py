"""Publishing by the SDK's client; receiving by both of its servers and by streams."""

import json
import time

from dapr.clients.exceptions import DaprGrpcError
from dapr.clients.grpc._response import TopicEventResponse

from report import Inbox, expect, refused


def pubsub_steps(r, c, side, pubsub, inbox):
    web = side == 'web'

    def publish(topic, data, content_type=None, metadata=None):
        c.publish_event(pubsub, topic if topic.startswith('declared') else f'{side}-{topic}', data, data_content_type=content_type, publish_metadata=metadata or {})

    def take(topic):
        return inbox.take(f'{side}/{pubsub}/{topic}')

    def data(event):
        """The data as the app's code gets them: decoded JSON over HTTP, bytes over gRPC."""
        return event['data'] if web else event.data.decode()

    def as_json():
        publish('plain', json.dumps({'order': 17, 'text': 'é<>&'}), 'application/json')
        event = take('plain')
        got = data(event)
        expect('data', got if web else json.loads(got), {'order': 17, 'text': 'é<>&'})
        if web:
            expect('the envelope', [event['source'], event['type'], event['specversion'], event['datacontenttype']], ['python-web', 'com.dapr.event.sent', '1.0', 'application/json'])
        else:
            expect('the event', [event.Source(), event.EventType(), event.ContentType(), event.Subject()], ['python-rpc', 'com.dapr.event.sent', 'application/json', 'rpc-plain'])

    def as_text():
        publish('plain', 'hällo')
        expect('data', data(take('plain')), 'hällo')

    def raw():
        publish('raw', 'as it is', metadata={'rawPayload': 'true'})
        event = take('raw')
        expect('data', event['data_base64'] if web else event.data, 'YXMgaXQgaXM=' if web else b'as it is')

    def bulk():
        resp = c.publish_events(pubsub, f'{side}-plain', ['one', b'two', 'three'], data_content_type='text/plain')
        expect('failed entries', resp.failed_entries, [])
        expect('the events', sorted(data(take('plain')) for _ in range(3)), ['one', 'three', 'two'])

    def dropped():
        publish('dropped', 'unwanted')
        expect('data', data(take('dead')), 'unwanted')

    def retried():
        publish('retried', 'again')
        expect('data', data(take('retried')), 'again')

    def declared():
        for kind, route in [('special', 'declared-special'), ('other', 'declared')]:
            publish('declared', kind, metadata={'cloudevent.type': kind})
            expect('data', data(take(route)), kind)

    def routed():
        publish('routed', 'nobody wants this', metadata={'cloudevent.type': 'unmatched'})
        for kind, route in [('special', 'special'), ('other', 'common')]:
            publish('routed', kind, metadata={'cloudevent.type': kind})
            expect('data', data(take(route)), kind)

    r.step('JSON', as_json)
    r.step('text', as_text)
    r.step('a raw payload', raw)
    r.step('bulk publish', bulk)
    r.step('dropped to the dead-letter topic', dropped)
    if web:
        r.step('retried until taken', retried)
        r.step('a declarative subscription with a rule', declared)
    else:
        r.step('rules route', routed)

    def unknown(e):
        expect('the error', [e.code().name, e.error_code()], ['INVALID_ARGUMENT', 'DAPR_PUBSUB_NOT_FOUND'])

    r.step('an unknown pubsub', lambda: refused(DaprGrpcError, lambda: c.publish_event('no-such-pubsub', 't', 'x'), unknown))


def opened(subscribe):
    """Subscribes and lets the stream settle. The SDK may end a stream while it opens it: its writer
    stops when it runs before the stream is marked active. It then connects again by itself, with
    the next read."""
    subscription = subscribe()
    time.sleep(0.2)
    return subscription


def receive(sub, publish, text):
    """Publishes text and reads it. A stream that had to connect again missed it, perhaps."""
    publish(text)
    while True:
        message = sub.next_message()
        if message is None:
            publish(text)
        elif message.data() == text:
            return message
        else:
            sub.respond_success(message)


def stream_steps(r, c, pubsub, inbox):
    def answers():
        sub = opened(lambda: c.subscribe(pubsub, 'stream', dead_letter_topic='rpc-dead'))
        try:
            for text, answer in [('good', sub.respond_success), ('bad', sub.respond_drop)]:
                message = receive(sub, lambda text: c.publish_event(pubsub, 'stream', text), text)
                expect('the topic', message.topic(), 'stream')
                answer(message)
            expect('the dead letter', inbox.take(f'rpc/{pubsub}/dead').data, b'bad')
        finally:
            sub.close()

    def again():
        sub = opened(lambda: c.subscribe(pubsub, 'stream-again'))
        try:
            sub.respond_retry(receive(sub, lambda text: c.publish_event(pubsub, 'stream-again', text), 'twice'))
            message = sub.next_message()
            expect('data', message.data(), 'twice')
            sub.respond_success(message)
        finally:
            sub.close()

    def handler():
        handled = Inbox()

        def handle(message):
            handled.put('n', message.data()['n'])
            return TopicEventResponse('success')

        close = opened(lambda: c.subscribe_with_handler(pubsub, 'handled', handle))
        try:
            for i in range(20):
                c.publish_event(pubsub, 'handled', json.dumps({'n': i}), data_content_type='application/json')
            expect('the events', sorted(handled.take('n') for _ in range(20)), list(range(20)))
        finally:
            close()

    r.step('streaming: success, drop', answers)
    r.step('streaming: retry brings it again', again)
    r.step('streaming: with a handler', handler)


def shared_steps(r, clients, inbox):
    def both():
        for side in ['web', 'rpc']:
            clients[side].publish_event('emb-pubsub', 'shared', f'from {side}')
            expect('at the HTTP app', inbox.take('web/emb-pubsub/shared')['data'], f'from {side}')
            expect('at the gRPC app', inbox.take('rpc/emb-pubsub/shared').data.decode(), f'from {side}')

    r.step('one event reaches both apps', both)
