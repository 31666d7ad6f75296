"""State by the SDK's gRPC client."""

import time

from dapr.clients.exceptions import DaprGrpcError
from dapr.clients.grpc._request import TransactionalStateOperation, TransactionOperationType
from dapr.clients.grpc._state import Concurrency, Consistency, StateItem, StateOptions

from report import expect, refused


def state_steps(r, c, store):
    def value(key, want):
        expect(f'the value of {key}', c.get_state(store, key).text(), want)

    def code(*want):
        def check(e):
            expect('the code', [e.code().name, e.error_code()][: len(want)], list(want))

        return check

    def save_and_get():
        c.save_state(store, 'plain', '{"n": 1}', state_metadata={'contentType': 'application/json'})
        expect('the value', c.get_state(store, 'plain').json(), {'n': 1})
        value('never-written', '')
        expect('the etag of nothing', c.get_state(store, 'never-written').etag, '')

    def binary():
        data = bytes(range(256))
        c.save_state(store, 'a/b é', data)
        expect('the value', c.get_state(store, 'a/b é').data, data)

    def etags():
        c.save_state(store, 'guarded', 'one')
        first = c.get_state(store, 'guarded').etag
        c.save_state(store, 'guarded', 'two', etag=first)
        refused(DaprGrpcError, lambda: c.save_state(store, 'guarded', 'three', etag=first), code('ABORTED'))
        refused(DaprGrpcError, lambda: c.delete_state(store, 'guarded', etag=first), code('ABORTED'))
        value('guarded', 'two')
        c.delete_state(store, 'guarded', etag=c.get_state(store, 'guarded').etag)
        value('guarded', '')

    def first_write():
        once = StateOptions(consistency=Consistency.strong, concurrency=Concurrency.first_write)
        c.delete_state(store, 'first')
        c.save_state(store, 'first', 'one', options=once)
        refused(DaprGrpcError, lambda: c.save_state(store, 'first', 'two', options=once), code('ABORTED'))
        value('first', 'one')

    def bulk():  # this SDK cannot delete several keys in one call
        c.save_bulk_state(store, [StateItem(key='m1', value='one'), StateItem(key='m2', value='two')])
        items = c.get_bulk_state(store, ['m1', 'm2', 'm3'], parallelism=2).items
        expect('the items', sorted((i.key, i.text(), i.error) for i in items), [('m1', 'one', ''), ('m2', 'two', ''), ('m3', '', '')])

    def transaction():
        def op(kind, key, data=None, etag=None):
            return TransactionalStateOperation(operation_type=kind, key=key, data=data, etag=etag)

        upsert, delete = TransactionOperationType.upsert, TransactionOperationType.delete
        c.save_state(store, 't2', 'goes')
        c.execute_state_transaction(store, [op(upsert, 't1', 'here'), op(delete, 't2')])
        value('t1', 'here')
        value('t2', '')
        refused(DaprGrpcError, lambda: c.execute_state_transaction(store, [op(upsert, 't3', 'never'), op(upsert, 't1', 'never', etag='999999')]), code('INTERNAL'))
        value('t3', '')
        value('t1', 'here')

    def expiry():
        c.save_state(store, 'brief', 'soon gone', state_metadata={'ttlInSeconds': '1'})
        value('brief', 'soon gone')
        end = time.time() + 10
        while c.get_state(store, 'brief').text() != '':
            expect('it is not too late', time.time() < end, True)
            time.sleep(0.1)

    r.step('save and get', save_and_get)
    r.step('bytes under an odd key', binary)
    r.step('etags guard', etags)
    r.step('the first write wins', first_write)
    r.step('bulk', bulk)
    r.step('a transaction is all or nothing', transaction)
    r.step('expiry', expiry)
    r.step('an unknown store', lambda: refused(DaprGrpcError, lambda: c.get_state('no-such-store', 'k'), code('INVALID_ARGUMENT', 'DAPR_STATE_NOT_FOUND')))
