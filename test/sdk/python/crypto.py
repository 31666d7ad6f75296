"""Encrypts and decrypts beside a sidecar that has the provider "vault" with the keys "aes" and
"rsa.pem", and opens a document that Dapr made."""

import os

from dapr.clients import DaprClient
from dapr.clients.grpc._crypto import DecryptOptions, EncryptOptions
from grpc import RpcError

from report import expect, refused


def crypto_mode(r):
    client = DaprClient(f'127.0.0.1:{os.environ["DAPR_GRPC_PORT"]}')

    def seal(data, key='aes', wrap='AES', **more):
        return client.encrypt(data, EncryptOptions(component_name='vault', key_name=key, key_wrap_algorithm=wrap, **more)).read()

    def unseal(doc, **more):
        return client.decrypt(doc, DecryptOptions(component_name='vault', **more)).read()

    def there_and_back(size, key, wrap):
        plain = os.urandom(size)
        expect('equality', unseal(seal(plain, key, wrap)) == plain, True)

    for key, wrap in [('aes', 'A256KW'), ('rsa.pem', 'RSA')]:
        for size in [1, 5, 300_000]:
            r.step(f'{size} bytes with {key}', lambda size=size, key=key, wrap=wrap: there_and_back(size, key, wrap))

    def options():
        doc = seal('hello', data_encryption_cipher='chacha20-poly1305', omit_decryption_key_name=True)
        expect('the text', unseal(doc, key_name='aes'), b'hello')

    def pieces():
        doc = b''.join(client.encrypt(b'x' * 200_000, EncryptOptions('vault', 'aes', 'AES')))
        expect('the length', len(b''.join(client.decrypt(doc, DecryptOptions('vault')))), 200_000)

    def daprs():
        with open(os.environ['CRYPTO_DOCUMENT'], 'rb') as f:
            expect('equality', unseal(f.read()) == b'0123456789abcdef' * 4106, True)

    def changed():
        doc = bytearray(seal(b'hello'))
        doc[-1] ^= 1
        refused(RpcError, lambda: unseal(bytes(doc)), lambda e: expect('the text', 'segment 0' in e.details(), True))

    r.step('every option', options)
    r.step('piece by piece', pieces)
    r.step("a document of Dapr's", daprs)
    r.step('an unknown key', lambda: refused(RpcError, lambda: seal(b'x', 'nobody'), lambda e: expect('the text', 'nobody' in e.details(), True)))
    r.step('a document that was changed', changed)
