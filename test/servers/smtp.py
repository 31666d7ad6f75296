"""The mail server of tests: aiosmtpd, which writes each mail it takes as a line of JSON.

Recipients tell what is to happen: refused@ is unknown, later@ comes too early. A mail that holds
the word SPAM is refused, one with the word HANG is never answered.
"""
import asyncio, base64, json, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

o = json.loads(sys.argv[1])


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused@"):
            return "550 5.1.1 no such mailbox"
        if address.startswith("later@"):
            return "451 4.7.1 come again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if b"SPAM" in envelope.content:
            return "554 5.7.1 this looks like spam"
        if b"HANG" in envelope.content:
            await asyncio.sleep(3600)
        mail = {
            "From": envelope.mail_from,
            "To": envelope.rcpt_tos,
            "Data": base64.b64encode(envelope.content).decode(),
            "TLS": session.ssl is not None or o["implicit"],
            "User": (session.auth_data or ""),
        }
        with open(o["out"], "a") as f:
            f.write(json.dumps(mail) + "\n")
        return "250 2.0.0 taken"


def login(server, session, envelope, mechanism, data):
    if isinstance(data, LoginPassword) and data.login.decode() == o["user"] and data.password.decode() == o["password"]:
        return AuthResult(success=True, auth_data=data.login.decode())
    return AuthResult(success=False, handled=False)


async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(o["cert"], o["key"])
    loop = asyncio.get_running_loop()

    def smtp():
        return SMTP(
            Handler(), loop=loop, hostname="mail.test", enable_SMTPUTF8=True, data_size_limit=1000000,
            tls_context=context if o["starttls"] else None,
            authenticator=login if o["user"] else None, auth_required=bool(o["user"]), auth_require_tls=False,
        )

    server = await loop.create_server(smtp, o["host"], o["port"], ssl=context if o["implicit"] else None)
    async with server:
        await server.serve_forever()


asyncio.run(main())
