"""A plain Redis client that follows docs/cache.md, "From another language", and nothing else.

usage: plain_client.py read|write|remove|invalidate HOST PORT USER DB PREFIX REGION ID [TAGS-JSON]
The password is the first line of standard input, the payload to write the rest of it.
"""

import json
import socket
import sys


class Redis:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=10)
        self.reader = self.socket.makefile("rb")

    def __call__(self, *arguments):
        parts = [b"*%d\r\n" % len(arguments)]
        for argument in arguments:
            data = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        self.socket.sendall(b"".join(parts))
        return self.answer()

    def answer(self):
        line = self.reader.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise SystemExit(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if int(rest) < 0:
                return None
            return self.reader.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        return rest


def markers(prefix, region, tags):
    return [f"{prefix}t:a", f"{prefix}t:r:{region}"] + [f"{prefix}t:t:{tag}" for tag in tags]


def now(redis):
    seconds, micros = redis("TIME")
    return int(seconds) * 1_000_000 + int(micros)


def read(redis, prefix, region, id):
    stored = redis("GET", f"{prefix}e:{region}:{id}")
    if stored is None or not stored.startswith(b"m1 "):
        return None
    header, payload = stored.split(b"\n", 1)
    _, letters, created, expires, tags = header.split(b" ", 4)
    if letters != b"j-" or now(redis) >= int(expires):
        return None
    for marker in redis("MGET", *markers(prefix, region, json.loads(tags))):
        # One that is missing was lost, and with it perhaps an invalidation.
        if marker is None or int(marker) >= int(created):
            return None
    return payload


def write(redis, prefix, region, id, tags, payload, seconds=300):
    created = now(redis)
    for name in markers(prefix, region, tags):
        redis("SET", name, created - 1, "NX")
        created = max(created, int(redis("GET", name)) + 1)
    expires = created + seconds * 1_000_000
    field = json.dumps(tags, separators=(",", ":"))
    header = f"m1 j- {created:016d} {expires:016d} {field}\n".encode()
    redis("SET", f"{prefix}e:{region}:{id}", header + payload, "PX", seconds * 1000)


def remove(redis, prefix, region, id, seconds=60):
    tombstone = f"m1 x- {now(redis):016d} {0:016d} []\n"
    redis("SET", f"{prefix}e:{region}:{id}", tombstone, "PX", seconds * 1000)


def main():
    what, host, port, user, database, prefix, region, id = sys.argv[1:9]
    tags = json.loads(sys.argv[9]) if len(sys.argv) > 9 else []
    password, _, payload = sys.stdin.buffer.read().partition(b"\n")
    redis = Redis(host, int(port))
    redis("AUTH", user, password)
    redis("SELECT", database)
    if what == "read":
        found = read(redis, prefix, region, id)
        sys.stdout.buffer.write(b"nothing" if found is None else found)
    elif what == "write":
        write(redis, prefix, region, id, tags, payload)
    elif what == "remove":
        remove(redis, prefix, region, id)
    elif what == "invalidate":
        redis("SET", f"{prefix}t:t:{tags[0]}", now(redis))


main()
