"""A database of RDS whose users come by tokens of IAM: checks a token as RDS does, and passes the rest to a PostgreSQL.

Prints the port it listens on, and then a line for each connection: `let in DATE` or `refused WHY`.
"""

import asyncio
import datetime
import ssl
import struct
import sys
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import boto3

SSL_REQUEST = 80877103


def refusal(token, user, port, key, secret):
    """Tells what is wrong with a token, by making the same one with botocore."""
    asked = {name: values[0] for name, values in parse_qs(urlsplit("https://" + token).query).items()}
    try:
        date = datetime.datetime.strptime(asked["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
        region = asked["X-Amz-Credential"].split("/")[2]
    except (KeyError, IndexError, ValueError):
        return "no token"
    age = datetime.datetime.utcnow() - date
    if not datetime.timedelta(minutes=-5) < age < datetime.timedelta(seconds=int(asked["X-Amz-Expires"])):
        return "too old"
    client = boto3.client("rds", region_name=region, aws_access_key_id=key, aws_secret_access_key=secret)
    with mock.patch("botocore.auth.get_current_datetime", lambda *_, **__: date):
        expected = client.generate_db_auth_token("127.0.0.1", port, user, region)
    if parse_qs(urlsplit("https://" + expected).query) != parse_qs(urlsplit("https://" + token).query):
        return "another signature"
    return None


async def serve(reader, writer, context, target, key, secret):
    length, code = struct.unpack("!ii", await reader.readexactly(8))
    if code != SSL_REQUEST:
        print("refused without TLS", flush=True)
        return writer.close()
    writer.write(b"S")
    await writer.drain()
    port = writer.get_extra_info("sockname")[1]
    await writer.start_tls(context)
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    startup = await reader.readexactly(length - 4)
    words = startup[4:].split(b"\0")
    user = dict(zip(words[::2], words[1::2]))[b"user"].decode()
    writer.write(b"R" + struct.pack("!ii", 8, 3))
    await writer.drain()
    await reader.readexactly(1)
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    token = (await reader.readexactly(length - 4)).rstrip(b"\0").decode()
    if why := refusal(token, user, port, key, secret):
        print("refused", why, flush=True)
        text = f"SFATAL\0VFATAL\0C28000\0MPAM authentication failed for user \"{user}\"\0\0".encode()
        writer.write(b"E" + struct.pack("!i", 4 + len(text)) + text)
        await writer.drain()
        return writer.close()
    print("let in", flush=True)
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target)
    there_writer.write(struct.pack("!i", len(startup) + 4) + startup)
    await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))


async def pipe(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main():
    certificate, private, target, key, secret = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)

    async def on_client(reader, writer):
        try:
            await serve(reader, writer, context, int(target), key, secret)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(on_client, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
