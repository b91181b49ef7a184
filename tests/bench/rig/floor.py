"""The floor: a bare epoll loop in CPython that makes the same Chat Completions stream. It is no server.

It has no access control, no limits, no errors, no TLS and no other dialect, and takes the shape of the simulated
backend's answers for granted. What it costs is what the interpreter and the system calls cost.

    floor.py PORT BACKEND_PORT
"""

import select
import socket
import sys

import msgspec

LISTENING = select.EPOLLIN
MARK = b'"delta":'


class Message(msgspec.Struct):
    content: str


class Asked(msgspec.Struct):
    messages: list[Message]
    model: str = ""
    stream: bool = False


class Event(msgspec.Struct):
    type: str
    delta: str = ""


decode, decode_event, encode = (
    msgspec.json.Decoder(Asked).decode,
    msgspec.json.Decoder(Event).decode,
    msgspec.json.Encoder().encode,
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Floor:
    def __init__(self, port: int, backend: int) -> None:
        self.backend = ("127.0.0.1", backend)
        self.epoll = select.epoll()
        self.listening = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listening.setblocking(False)
        self.epoll.register(self.listening, LISTENING)
        self.clients: dict[int, Client] = {}
        self.upstream: dict[int, Client] = {}
        self.idle: list[socket.socket] = []

    def run(self) -> None:
        listening = self.listening.fileno()
        while True:
            for fd, _ in self.epoll.poll(-1, 256):
                if (client := self.upstream.get(fd)) is not None:
                    client.answer()
                elif (client := self.clients.get(fd)) is not None:
                    client.read()
                elif fd == listening:
                    opened, _ = self.listening.accept()
                    opened.setblocking(False)
                    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.clients[opened.fileno()] = Client(self, opened)
                    self.epoll.register(opened, LISTENING)

    def connect(self) -> socket.socket:
        if self.idle:
            return self.idle.pop()
        made = socket.create_connection(self.backend)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self.epoll.register(made, LISTENING)
        return made


class Client:
    def __init__(self, floor: Floor, opened: socket.socket) -> None:
        self.floor, self.socket = floor, opened
        self.data = self.rest = b""
        self.up: socket.socket | None = None
        self.before = self.after = b""

    def read(self) -> None:
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        if len(body) < length:
            return
        self.data = body[length:]
        asked = decode(body[:length])
        sent = encode({"model": asked.model, "stream": True, "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": each.content}]}
            for each in asked.messages
        ]})  # fmt: skip
        chunk = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": asked.model}
        text = encode(chunk | {"choices": [{"index": 0, "delta": {"content": "\0"}, "finish_reason": None}]})
        self.before, _, self.after = text.partition(encode("\0"))
        self.end = encode(chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.started = False
        self.up = self.floor.connect()
        self.floor.upstream[self.up.fileno()] = self
        self.up.send(
            b"POST /backend-api/codex/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer x\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(sent), sent)
        )

    def answer(self) -> None:
        assert self.up is not None
        data = self.rest + self.up.recv(65536)
        before, after = b"data: " + self.before, self.after + b"\n\n"
        out, at, done = [], 0, False
        while (start := data.find(b"data: ", at)) >= 0 and (end := data.find(b"\n\n", start)) >= 0:
            event = decode_event(data[start + 6 : end])
            if event.type == "response.output_text.delta":
                out.append(before + encode(event.delta) + after)
            elif event.type == "response.completed":
                out.append(b"data: %b\n\ndata: [DONE]\n\n" % self.end)
                done = True
            at = end + 2
        self.rest = data[at:]
        if out:
            piece = b"".join(out)
            sent = b"%x\r\n%b\r\n" % (len(piece), piece)
            if not self.started:
                self.started, sent = True, HEAD + sent
            self.write(sent + b"0\r\n\r\n" if done else sent)
        if self.up is not None and self.rest.endswith(b"0\r\n\r\n"):
            del self.floor.upstream[self.up.fileno()]
            self.floor.idle.append(self.up)
            self.up, self.rest = None, b""

    def write(self, data: bytes) -> None:
        try:
            self.socket.send(data)
        except OSError:
            self.close()

    def close(self) -> None:
        self.floor.clients.pop(self.socket.fileno(), None)
        self.socket.close()
        if self.up is not None:
            self.floor.upstream.pop(self.up.fileno(), None)
            self.up.close()
            self.up = None


Floor(int(sys.argv[1]), int(sys.argv[2])).run()
