"""Configuration, locks, secrets and bindings by the SDK's gRPC client."""

import os
import time
import urllib.request

from dapr.clients.grpc._response import UnlockResponseStatus
from grpc import RpcError

from report import Inbox, expect, refused


def code(want):
    return lambda e: expect('the code', e.code().name, want)


def write(store, key, value):
    """Writes a configuration item as its operator does, for the SDKs only read."""
    request = urllib.request.Request(f'{os.environ["OPERATOR"]}/{store}/{key}', value.encode(), method='PUT')
    with urllib.request.urlopen(request, timeout=15):
        pass


def configuration_steps(r, c, store):
    a, b, missing = (f'{os.environ["RPC_APP_ID"]}-{name}' for name in ['a', 'b', 'missing'])

    def get():
        write(store, a, '1')
        write(store, b, 'é<>&')
        items = c.get_configuration(store, [a, b, missing]).items
        expect('the items', {k: i.value for k, i in items.items()}, {a: '1', b: 'é<>&'})

    def subscribe():
        told = Inbox()

        def keep(name):
            return lambda _, change: [told.put(name, (k, i.value)) for k, i in change.items.items()]

        first = c.subscribe_configuration(store, [a], keep('first'))
        second = c.subscribe_configuration(store, [a, b], keep('second'))
        write(store, a, '2')
        for name in ['first', 'second']:
            expect('the change', told.take(name), (a, '2'))
        expect('unsubscribed', c.unsubscribe_configuration(store, first), True)
        write(store, a, '3')
        expect('the next change', told.take('second'), (a, '3'))
        expect('what an ended subscription was told', told.size('first'), 0)
        expect('unsubscribed', c.unsubscribe_configuration(store, second), True)
        expect('unsubscribed twice', c.unsubscribe_configuration(store, second), False)

    r.step('get', get)
    r.step('subscribe and unsubscribe', subscribe)
    # Only some of the SDK's methods make their errors a DaprGrpcError; this one does not.
    r.step('an unknown store', lambda: refused(RpcError, lambda: c.get_configuration('no-such-store', [a]), code('INVALID_ARGUMENT')))


def lock_steps(r, c, store):
    def attempt(name, owner, want, seconds=60):
        expect(f'whether {owner} has the lock', c.try_lock(store, name, owner, seconds).success, want)

    def unlock(name, owner, want):
        expect(f'what unlocking by {owner} says', c.unlock(store, name, owner).status, want)

    status = UnlockResponseStatus

    def turns():
        attempt('turn', 'one', True)
        attempt('turn', 'one', False)
        attempt('turn', 'two', False)
        unlock('turn', 'two', status.lock_belongs_to_others)
        unlock('turn', 'one', status.success)
        unlock('turn', 'one', status.lock_does_not_exist)

    def guarded():
        with c.try_lock(store, 'guarded', 'one', 60) as lock:
            expect('taken', bool(lock), True)
            attempt('guarded', 'two', False)
        attempt('guarded', 'two', True)  # the end of the statement has given it back
        unlock('guarded', 'two', status.success)

    def ends():
        attempt('brief', 'one', True, 1)
        end = time.time() + 10
        while not c.try_lock(store, 'brief', 'two', 60).success:
            expect('it is not too late', time.time() < end, True)
            time.sleep(0.05)
        unlock('brief', 'two', status.success)

    r.step('one owner at a time', turns)
    r.step('a with statement', guarded)
    r.step('a lock ends by itself', ends)


def secret_steps(r, c):
    def get():
        expect('a secret', dict(c.get_secret('file-secrets', 'plain').secret), {'plain': 'hidden'})
        expect('one of two values', dict(c.get_secret('file-secrets', 'pair').secret), {'user': 'u', 'password': 'p'})

    def get_all():
        expect('the secrets', c.get_bulk_secret('file-secrets').secrets, {'plain': {'plain': 'hidden'}, 'pair': {'user': 'u', 'password': 'p'}})

    r.step('get', get)
    r.step('get all', get_all)
    r.step('a missing secret', lambda: refused(RpcError, lambda: c.get_secret('file-secrets', 'missing'), code('INTERNAL')))
    r.step('an unknown store', lambda: refused(RpcError, lambda: c.get_bulk_secret('no-such-store'), code('INVALID_ARGUMENT')))


def binding_steps(r, c, inbox):
    def invoke(operation, data='', name='python/file.txt'):
        return c.invoke_binding('files', operation, data, {'fileName': name})

    def output():
        expect('what creating says', 'python/file.txt' in invoke('create', 'line é\n').text(), True)
        expect('the file', invoke('get').text(), 'line é\n')
        invoke('delete')
        refused(RpcError, lambda: invoke('get'), code('INTERNAL'))

    def events(side):
        first, second = inbox.take(f'{side}/tick'), inbox.take(f'{side}/tick')
        expect('data', first[1], b'')
        expect('two times', [bool(first[0]), bool(second[0]), first[0] != second[0]], [True, True, True])

    r.step('output: create, get, delete', output)
    r.step('output: an unknown operation', lambda: refused(RpcError, lambda: invoke('sing'), code('INTERNAL')))
    for side in ['rpc', 'web']:
        r.step(f'input: events come to the {side} app', lambda side=side: events(side))
