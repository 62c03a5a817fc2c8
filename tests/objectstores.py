"""S3 servers on loopback, and a proxy in front of them that counts, delays and fails requests."""

import asyncio
import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
NODE = Path(__file__).parent / "tracelab" / "trace" / "s3"


@contextlib.contextmanager
def _serving(command, pattern):
    """Start a server process; give its port, found in its output; end it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # Unbuffered: what was read must not hide from `select`.
    process = subprocess.Popen(command, bufsize=0, **pipes)
    try:
        said = b""
        while not (found := re.search(pattern, said)):
            assert select.select([process.stdout], [], [], 60)[0], "the server says nothing"
            line = process.stdout.readline()
            assert line, f"the server ended: {said}"
            said += line
        yield int(found[1])
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


@contextlib.contextmanager
def moto():
    """Give the port of moto's S3 server, in a process of its own."""
    with _serving([sys.executable, "-c", MOTO], rb"port (\d+)") as port:
        yield port


def s3rver_missing():
    """Install s3rver from its lock file; return why it cannot be used, or None."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not installed"
    if not (NODE / "node_modules" / "s3rver").is_dir():
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=NODE, capture_output=True, text=True
        )
        if done.returncode:
            return f"npm could not install s3rver: {done.stderr[-300:]}"
    return None


@contextlib.contextmanager
def s3rver(folder):
    """Give the port of s3rver, which checks signatures; its only user is S3RVER."""
    program = NODE / "node_modules" / "s3rver" / "bin" / "s3rver.js"
    command = ["node", program, "-d", folder, "-a", "127.0.0.1", "-p", "0", "--silent"]
    # The cipher of its listings' tokens is an old one.
    with _serving(
        ["env", "NODE_OPTIONS=--openssl-legacy-provider", *command],
        rb"listening on 127\.0\.0\.1:(\d+)",
    ) as port:
        yield port


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    headers: dict
    sent: int = 0
    received: int = 0

    @property
    def key(self):
        return self.path.partition("?")[0]

    def __str__(self):
        extra = self.headers.get("range", "")
        return f"{self.method} {self.path} {extra}".rstrip()


@dataclass
class Reply:
    """An answer that the proxy gives itself."""

    status: int
    code: str
    message: str = "said the test"

    def content(self):
        return (
            f"<?xml version='1.0'?><Error><Code>{self.code}</Code>"
            f"<Message>{self.message}</Message></Error>"
        ).encode()


RESET = "reset"
"""A fault: the connection breaks after the head of the request."""


@dataclass
class Proxy:
    """Forwards requests to a server on loopback; runs in a thread of its own.

    Attributes
    ----------
    requests : list of Request
        What was asked, in the order of the answers.
    delay : float
        Seconds added to each request.
    fault : callable
        Given a Request, returns None, `RESET` or a `Reply`.
    peak : int
        Most requests that waited at the same time.
    """

    upstream: int
    requests: list = field(default_factory=list)
    delay: float = 0.0
    fault: object = None
    peak: int = 0
    port: int = 0
    _waiting: int = 0

    @contextlib.contextmanager
    def running(self):
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
            self.port = self._server.sockets[0].getsockname()[1]
            yield self
        finally:
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def _call(self, task):
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(30)

    async def _end(self):
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def clear(self):
        """Forget what was counted."""
        self.requests.clear()
        self.peak = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader, writer):
        broken = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*broken):
            while await self._one(reader, writer):
                await writer.drain()
        await _close(writer)

    async def _one(self, reader, writer):
        method, path, headers = await _head(reader)
        request = Request(method, path, headers)
        fault = self.fault(request) if self.fault else None
        if fault is RESET:
            writer.transport.abort()
            self.requests.append(request)
            return False
        if headers.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self._waiting += 1
        self.peak = max(self.peak, self._waiting)
        if self.delay:
            await asyncio.sleep(self.delay)
        if isinstance(fault, Reply):
            status, kept, content = f"{fault.status} Fault", {}, fault.content()
        else:
            status, kept, content = await self._forward(method, path, headers, body)
        self._waiting -= 1
        self.requests.append(Request(method, path, headers, len(body), len(content)))
        lengths = kept if method == "HEAD" else {**kept, "content-length": len(content)}
        head = "".join(f"{name}: {value}\r\n" for name, value in lengths.items())
        writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content)
        return True

    async def _forward(self, method, path, headers, body):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        sent = {**headers, "connection": "close"}
        sent.pop("expect", None)
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        try:
            line, answered = "", {}
            while not line or line.startswith("100"):
                _, line, answered = await _head(reader)
            content = b"" if method == "HEAD" else await reader.read()
        finally:
            await _close(writer)
        if answered.pop("transfer-encoding", "") == "chunked":
            content = _joined(content)
        answered.pop("connection", None)
        return line, answered, content


async def _close(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _head(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    first, second = lines[0].split(" ", 1)
    if not first.startswith("HTTP/"):
        second = second.rsplit(" ", 1)[0]
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    return first, second, {name.lower(): value.strip() for name, value in pairs}


def _joined(chunks):
    content, rest = b"", chunks
    while rest:
        size, rest = rest.split(b"\r\n", 1)
        count = int(size.split(b";")[0], 16)
        if not count:
            break
        content, rest = content + rest[:count], rest[count + 2 :]
    return content


def settings(port, user="tester", secret="not-a-secret"):
    """Return the environment of a process that uses the server at a port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": user,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        # No file of the machine's user has a say.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
