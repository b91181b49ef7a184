//! The simulated ChatGPT backend: one thread, one epoll, a few microseconds an event.
//!
//!     backend --port 18000 [--models FILE] [--token WORD]      port 0 is any free one; the first line it prints says which
//!
//! `POST .../responses` is answered with an event stream, `GET .../responses` with an upgrade to a websocket, on which
//! each `response.create` is answered with the same events, one a text frame. `POST .../oauth/token`, `GET ...models...`
//! and `GET ...usage...` are answered with JSON. `/__stats` says what it has seen, and `/__reset` forgets that.
//!
//! A marker anywhere in a request says what its answer is like, so that it passes through any relay:
//! `@@n=200;b=16;r=50;k=1;s=0;u=7@@`.
//!
//!     n  pieces of text                               b  bytes of each; from 13 on it begins with its time
//!     r  pieces a second, 0 for all at once           k  pieces a write
//!     s  after so many it stops and stays silent      u  the request's number, for /__stats
//!
//! A piece is `~`, 12 hexadecimal digits (microseconds of CLOCK_MONOTONIC when it was made), and padding.
mod sys;
mod websocket;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::io::{AsRawFd, RawFd};
use sys::{find, header, now, now_us, Epoll, Options, ERROR, HANG_UP, IN, OUT, PEER_DONE};
use websocket::{accept_of, frame_of, put_frame, CLOSE, CONTINUATION, PING, PONG, TEXT};

const USAGE: &str = r#"{"plan_type":"pro","rate_limit":{"allowed":true,"limit_reached":false,"primary_window":{"used_percent":1,"limit_window_seconds":18000,"reset_after_seconds":10000,"reset_at":4102444800},"secondary_window":{"used_percent":1,"limit_window_seconds":604800,"reset_after_seconds":10000,"reset_at":4102444800}},"credits":null}"#;
const LIMITS: &str = "x-codex-primary-used-percent: 1\r\nx-codex-primary-window-minutes: 300\r\nx-codex-primary-reset-after-seconds: 1000\r\nx-codex-primary-reset-at: 4102444800\r\nx-codex-secondary-used-percent: 2\r\nx-codex-secondary-window-minutes: 10080\r\nx-codex-secondary-reset-after-seconds: 10000\r\nx-codex-secondary-reset-at: 4102444800\r\n";
const INSTRUCTIONS: usize = 64;
const OBFUSCATION: usize = 8;
/// Writes in a row for one stream, before the others have their turn.
const TURN: usize = 16;

#[derive(Clone)]
struct Shape {
    pieces: u64,
    bytes: usize,
    rate: u64,
    a_write: u64,
    silent_after: u64,
    number: u64,
}

impl Shape {
    fn of(request: &[u8]) -> Shape {
        let mut shape = Shape { pieces: 50, bytes: 16, rate: 0, a_write: 1, silent_after: 0, number: 0 };
        let marker = find(request, b"@@").and_then(|begin| {
            let rest = &request[begin + 2..];
            find(rest, b"@@").map(|end| String::from_utf8_lossy(&rest[..end]).into_owned())
        });
        for (name, value) in marker.unwrap_or_default().split(';').filter_map(|pair| pair.split_once('=')) {
            match (name, value.parse::<u64>().unwrap_or(0)) {
                ("n", value) => shape.pieces = value,
                ("b", value) => shape.bytes = value as usize,
                ("r", value) => shape.rate = value,
                ("k", value) => shape.a_write = value.max(1),
                ("s", value) => shape.silent_after = value,
                ("u", value) => shape.number = value,
                _ => {}
            }
        }
        shape
    }
}

#[derive(PartialEq)]
enum Phase {
    Head,
    Pieces,
    Tail,
}

struct Answer {
    shape: Shape,
    websocket: bool,
    phase: Phase,
    id: u64,
    prompt: usize,
    made: u64,
    sequence: u64,
    text: String,
    first: u64,
    last_us: u64,
    /// It stands in the heap of what is due.
    scheduled: bool,
    /// The connection ends with it.
    last: bool,
}

impl Answer {
    fn id_of(&self, kind: &str) -> String {
        format!("{kind}_00000068f3a181908a3c5f0e7d2b9a64c1{:014x}", self.id)
    }

    fn event(&mut self, output: &mut Vec<u8>, kind: &str, fields: &str) {
        let json = format!(r#"{{"type":"{kind}","sequence_number":{},{fields}}}"#, self.sequence);
        self.sequence += 1;
        if self.websocket {
            put_frame(output, TEXT, json.as_bytes(), None);
        } else {
            let _ = write!(output, "event: {kind}\ndata: {json}\n\n");
        }
    }

    fn part(&self, text: &str) -> String {
        format!(r#"{{"type":"output_text","annotations":[],"logprobs":[],"text":"{text}"}}"#)
    }

    fn item(&self, status: &str, content: &str) -> String {
        let id = self.id_of("msg");
        format!(
            r#"{{"id":"{id}","type":"message","status":"{status}","content":[{content}],"phase":"final_answer","role":"assistant"}}"#
        )
    }

    fn response(&self, status: &str, output: &str, usage: &str) -> String {
        let (id, instructions) = (self.id_of("resp"), "i".repeat(INSTRUCTIONS));
        format!(
            r#""response":{{"id":"{id}","object":"response","created_at":1766000000,"status":"{status}","background":false,"completed_at":null,"error":null,"frequency_penalty":0.0,"incomplete_details":null,"instructions":"{instructions}","max_output_tokens":null,"max_tool_calls":null,"model":"gpt-5.1-codex","output":[{output}],"parallel_tool_calls":true,"presence_penalty":0.0,"previous_response_id":null,"prompt_cache_key":"019a0000-0000-7000-8000-000000000000","prompt_cache_retention":null,"reasoning":{{"effort":"medium","summary":"detailed"}},"safety_identifier":"user-fake","service_tier":"default","store":false,"temperature":1.0,"text":{{"format":{{"type":"text"}},"verbosity":"medium"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":0.98,"truncation":"disabled","usage":{usage},"user":null,"metadata":{{}}}}"#
        )
    }

    /// The piece's text, with its time when there is room for that. No two have the same time.
    fn piece(&mut self) -> String {
        match self.shape.bytes.checked_sub(13) {
            None => "x".repeat(self.shape.bytes),
            Some(padding) => {
                self.last_us = now_us().max(self.last_us + 1);
                format!("~{:012x}{}", self.last_us & 0xffff_ffff_ffff, "x".repeat(padding))
            }
        }
    }

    fn is_silent(&self) -> bool {
        self.phase == Phase::Pieces && self.shape.silent_after > 0 && self.made >= self.shape.silent_after
    }

    /// When the next write is to be made.
    fn due(&mut self, now: u64) -> u64 {
        if self.phase != Phase::Pieces || self.shape.rate == 0 {
            return now;
        }
        if self.first == 0 {
            self.first = now;
        }
        self.first + self.made * 1_000_000_000 / self.shape.rate
    }

    /// Appends what is written at once. True when that is the end.
    fn write(&mut self, output: &mut Vec<u8>) -> bool {
        let id = self.id_of("msg");
        match self.phase {
            Phase::Head => {
                let response = self.response("in_progress", "", "null");
                self.event(output, "response.created", &response);
                self.event(output, "response.in_progress", &response);
                let fields = format!(r#""item":{},"output_index":0"#, self.item("in_progress", ""));
                self.event(output, "response.output_item.added", &fields);
                let fields = format!(r#""content_index":0,"item_id":"{id}","output_index":0,"part":{}"#, self.part(""));
                self.event(output, "response.content_part.added", &fields);
                self.phase = Phase::Pieces;
            }
            Phase::Pieces => {
                let until = self.shape.pieces.min(self.made + self.shape.a_write);
                while self.made < until && !self.is_silent() {
                    let (piece, obfuscation) = (self.piece(), "x".repeat(OBFUSCATION));
                    self.text.push_str(&piece);
                    let fields = format!(
                        r#""content_index":0,"delta":"{piece}","item_id":"{id}","logprobs":[],"obfuscation":"{obfuscation}","output_index":0"#
                    );
                    self.event(output, "response.output_text.delta", &fields);
                    self.made += 1;
                }
                if self.made >= self.shape.pieces {
                    self.phase = Phase::Tail;
                }
            }
            Phase::Tail => {
                let text = std::mem::take(&mut self.text);
                let (part, made) = (self.part(&text), self.made);
                let place = format!(r#""content_index":0,"item_id":"{id}""#);
                let fields = format!(r#"{place},"logprobs":[],"output_index":0,"text":"{text}""#);
                self.event(output, "response.output_text.done", &fields);
                self.event(output, "response.content_part.done", &format!(r#"{place},"output_index":0,"part":{part}"#));
                let item = self.item("completed", &part);
                self.event(output, "response.output_item.done", &format!(r#""item":{item},"output_index":0"#));
                let usage = format!(
                    r#"{{"input_tokens":{},"input_tokens_details":{{"cached_tokens":0}},"output_tokens":{made},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{}}}"#,
                    self.prompt,
                    self.prompt as u64 + made
                );
                let response = self.response("completed", &item, &usage);
                self.event(output, "response.completed", &response);
                return true;
            }
        }
        false
    }
}

struct Connection {
    stream: TcpStream,
    fd: RawFd,
    generation: u32,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    answer: Option<Answer>,
    close_after: bool,
    websocket: bool,
    /// The frames of a message that has not ended.
    message: Vec<u8>,
    interest: u32,
}

impl Connection {
    fn answer_with(&mut self, status: &str, json: &str) {
        let length = json.len();
        let _ = write!(
            self.output,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{json}"
        );
    }

    fn close_websocket(&mut self, status: u16) {
        put_frame(&mut self.output, CLOSE, &status.to_be_bytes(), None);
        self.close_after = true;
    }

    /// The first request's head, in lower case but for the path, its body, and the bytes of both; None while some are missing.
    fn request(&mut self) -> Option<(String, String, Vec<u8>, usize)> {
        let begin = find(&self.input, b"\r\n\r\n")? + 4;
        let original = String::from_utf8_lossy(&self.input[..begin]).into_owned();
        let head = original.to_ascii_lowercase();
        if header(&head, "transfer-encoding").map_or(false, |value| value.contains("chunked")) {
            let (mut body, mut from) = (vec![], begin);
            loop {
                let line = from + find(&self.input[from..], b"\r\n")?;
                let digits = String::from_utf8_lossy(&self.input[from..line]);
                let size = usize::from_str_radix(digits.split(';').next().unwrap_or("").trim(), 16).unwrap_or(0);
                body.extend_from_slice(self.input.get(line + 2..line + 2 + size)?);
                from = line + 2 + size + 2;
                if from > self.input.len() {
                    return None;
                }
                if size == 0 {
                    return Some((original, head, body, from));
                }
            }
        }
        let size = header(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0usize);
        if header(&head, "expect").is_some() && self.input.len() == begin && self.output.is_empty() {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let body = self.input.get(begin..begin + size)?.to_vec();
        Some((original, head, body, begin + size))
    }
}

/// What became of a connection.
#[derive(PartialEq)]
enum Step {
    Done,
    Waits,
    Gone,
}

struct Server {
    epoll: Epoll,
    connections: Vec<Option<Box<Connection>>>,
    due: BinaryHeap<Reverse<(u64, RawFd, u32)>>,
    models: String,
    token: String,
    generation: u32,
    ids: u64,
    total: u64,
    active: u64,
    completed: u64,
    accepted: u64,
    /// Answers that nobody read to the end: the request's number, when that was seen, pieces that were made.
    early: Vec<(u64, u64, u64)>,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).and(stream.set_nodelay(true)).is_err() {
                continue;
            }
            let (fd, interest) = (stream.as_raw_fd(), IN | PEER_DONE);
            self.epoll.add(fd, interest);
            self.accepted += 1;
            self.generation += 1;
            if self.connections.len() <= fd as usize {
                self.connections.resize_with(fd as usize + 1, || None);
            }
            self.connections[fd as usize] = Some(Box::new(Connection {
                stream,
                fd,
                generation: self.generation,
                input: vec![],
                output: vec![],
                sent: 0,
                answer: None,
                close_after: false,
                websocket: false,
                message: vec![],
                interest,
            }));
        }
    }

    /// Does something with a connection, which ends when it is gone.
    fn with(&mut self, fd: RawFd, act: impl FnOnce(&mut Server, &mut Connection) -> Step) {
        let mut connection = match self.connections.get_mut(fd as usize).and_then(|each| each.take()) {
            Some(connection) => connection,
            None => return,
        };
        if act(self, &mut connection) != Step::Gone {
            self.connections[fd as usize] = Some(connection);
        } else if let Some(answer) = &connection.answer {
            self.active -= 1;
            self.early.push((answer.shape.number, now_us(), answer.made));
        }
    }

    fn flush(&self, connection: &mut Connection) -> Step {
        while connection.sent < connection.output.len() {
            match (&connection.stream).write(&connection.output[connection.sent..]) {
                Ok(number) => connection.sent += number,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Step::Gone,
            }
        }
        let all = connection.sent == connection.output.len();
        if all {
            connection.output.clear();
            connection.sent = 0;
        }
        let interest = IN | PEER_DONE | if all { 0 } else { OUT };
        if interest != connection.interest {
            connection.interest = interest;
            self.epoll.change(connection.fd, interest);
        }
        match (all, connection.close_after) {
            (true, true) => Step::Gone,
            (true, false) => Step::Done,
            (false, _) => Step::Waits,
        }
    }

    /// Reads, answers what is there, and goes on with the answer that is under way.
    fn turn(&mut self, connection: &mut Connection) -> Step {
        loop {
            let taken = if connection.websocket { self.take_frame(connection) } else { self.take(connection) };
            let step = match taken {
                Step::Waits if connection.answer.is_none() => return self.flush(connection),
                Step::Waits => self.pump(connection),
                taken => taken,
            };
            if step != Step::Done {
                return step;
            }
        }
    }

    fn at(&mut self, time: u64, connection: &mut Connection) -> Step {
        if let Some(answer) = connection.answer.as_mut().filter(|answer| !answer.scheduled) {
            answer.scheduled = true;
            self.due.push(Reverse((time, connection.fd, connection.generation)));
        }
        Step::Waits
    }

    fn pump(&mut self, connection: &mut Connection) -> Step {
        for _ in 0..TURN {
            if !connection.output.is_empty() {
                return Step::Waits;
            }
            let answer = match connection.answer.as_mut() {
                Some(answer) if !answer.is_silent() => answer,
                _ => return Step::Waits,
            };
            let now = now();
            let due = answer.due(now);
            if due > now {
                return self.at(due, connection);
            }
            let mut written = Vec::with_capacity(1024);
            let over = answer.write(&mut written);
            if answer.websocket {
                connection.output.append(&mut written);
            } else {
                let _ = write!(connection.output, "{:x}\r\n", written.len());
                connection.output.append(&mut written);
                connection.output.extend_from_slice(if over { b"\r\n0\r\n\r\n" } else { b"\r\n" });
            }
            if over {
                connection.close_after = answer.last;
                connection.answer = None;
                self.active -= 1;
                self.completed += 1;
            }
            let step = self.flush(connection);
            if over || step != Step::Done {
                return step;
            }
        }
        self.at(now(), connection)
    }

    fn begin(&mut self, connection: &mut Connection, request: &[u8], last: bool) {
        self.total += 1;
        self.active += 1;
        connection.answer = Some(Answer {
            shape: Shape::of(request),
            websocket: connection.websocket,
            phase: Phase::Head,
            id: self.ids,
            prompt: request.len() / 4,
            made: 0,
            sequence: 0,
            text: String::new(),
            first: 0,
            last_us: 0,
            scheduled: false,
            last,
        });
        self.generation += 1;
        connection.generation = self.generation;
        self.ids += 1;
    }

    /// Takes a request, and begins to answer it.
    fn take(&mut self, connection: &mut Connection) -> Step {
        if connection.answer.is_some() {
            return Step::Waits;
        }
        let (original, head, body, length) = match connection.request() {
            Some(request) => request,
            None => return Step::Waits,
        };
        connection.input.drain(..length);
        let mut words = original.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let path = target.split('?').next().unwrap_or("");
        let last = header(&head, "connection").map_or(false, |value| value.contains("close"));
        match (method, path) {
            ("POST", path) if path.ends_with("/responses") => {
                let close = if last { "connection: close\r\n" } else { "" };
                let _ = write!(
                    connection.output,
                    "HTTP/1.1 200 OK\r\ndate: Sat, 22 Nov 2025 00:00:00 GMT\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\nserver: cloudflare\r\nx-request-id: {:032x}\r\n{LIMITS}openai-processing-ms: 5\r\ncf-ray: fake\r\n{close}\r\n",
                    self.ids
                );
                self.begin(connection, &body, last);
                return self.flush(connection);
            }
            ("GET", path) if path.ends_with("/responses") && header(&head, "upgrade") == Some("websocket") => {
                let named =
                    original.split("\r\n").find(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key:"));
                let key = named.and_then(|line| line.split_once(':')).map_or("", |(_, key)| key.trim());
                let _ = write!(
                    connection.output,
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {}\r\n{LIMITS}\r\n",
                    accept_of(key)
                );
                connection.websocket = true;
                return self.flush(connection);
            }
            (_, "/__stats") => {
                let early: Vec<String> = self.early.iter().map(|(a, b, c)| format!("[{a},{b},{c}]")).collect();
                let stats = format!(
                    r#"{{"total":{},"active":{},"completed":{},"accepted":{},"early":[{}]}}"#,
                    self.total,
                    self.active,
                    self.completed,
                    self.accepted,
                    early.join(",")
                );
                connection.answer_with("200 OK", &stats);
            }
            (_, "/__reset") => {
                self.total = 0;
                self.completed = 0;
                self.accepted = 0;
                self.early.clear();
                connection.answer_with("200 OK", "{}");
            }
            (_, path) if path.ends_with("/oauth/token") => {
                let token = &self.token;
                let tokens = format!(
                    r#"{{"access_token":"{token}","id_token":"{token}","refresh_token":"rt_fake","token_type":"bearer","expires_in":864000}}"#
                );
                connection.answer_with("200 OK", &tokens);
            }
            (_, path) if path.contains("models") => connection.answer_with("200 OK", &self.models),
            (_, path) if path.contains("usage") => connection.answer_with("200 OK", USAGE),
            _ => connection.answer_with("404 Not Found", r#"{"detail":"Not Found"}"#),
        }
        connection.close_after = last;
        self.flush(connection)
    }

    /// Takes a frame. While an answer is under way only pings and the end are taken.
    fn take_frame(&mut self, connection: &mut Connection) -> Step {
        let frame = match frame_of(&connection.input) {
            Some(frame) => frame,
            None => return Step::Waits,
        };
        if connection.answer.is_some() && frame.kind < CLOSE || connection.close_after {
            return Step::Waits;
        }
        connection.input.drain(..frame.length);
        match frame.kind {
            _ if !frame.masked => connection.close_websocket(1002),
            TEXT | CONTINUATION => {
                connection.message.extend_from_slice(&frame.payload);
                if frame.last {
                    let message = std::mem::take(&mut connection.message);
                    if find(&message, b"\"response.create\"").is_some() {
                        self.begin(connection, &message, false);
                    } else {
                        connection.close_websocket(1008);
                    }
                }
            }
            PING => put_frame(&mut connection.output, PONG, &frame.payload, None),
            PONG => {}
            CLOSE => connection.close_websocket(1000),
            _ => connection.close_websocket(1003),
        }
        self.flush(connection)
    }
}

fn main() {
    let options = Options::new();
    sys::raise_descriptor_limit();
    let models = r#"{"models":[{"slug":"gpt-5.1-codex","display_name":"gpt-5.1-codex","supported_in_api":true,"visibility":"list"}]}"#;
    let listener = TcpListener::bind(("127.0.0.1", options.number("port", 18000) as u16)).unwrap_or_else(|error| {
        eprintln!("backend: cannot listen: {error}");
        std::process::exit(1)
    });
    let door = listener.as_raw_fd();
    sys::lengthen_queue(door);
    listener.set_nonblocking(true).expect("a listener can be non-blocking");
    println!("listening on port {}", listener.local_addr().map_or(0, |address| address.port()));
    let mut server = Server {
        epoll: Epoll::new(),
        connections: vec![],
        due: BinaryHeap::new(),
        models: std::fs::read_to_string(options.text("models", "")).unwrap_or_else(|_| models.to_string()),
        token: options.text("token", "fake"),
        generation: 0,
        ids: 1,
        total: 0,
        active: 0,
        completed: 0,
        accepted: 0,
        early: vec![],
    };
    server.epoll.add(door, IN);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let timeout = match server.due.peek() {
            None => -1,
            Some(Reverse((time, ..))) if *time <= now() => 0,
            Some(Reverse((time, ..))) => (time.saturating_sub(now()) / 1_000_000 + 1).min(1000) as i32,
        };
        for (fd, events) in server.epoll.wait(timeout) {
            if fd == door {
                server.accept(&listener);
                continue;
            }
            server.with(fd, |server, connection| {
                if events & (IN | PEER_DONE | HANG_UP | ERROR) != 0 {
                    loop {
                        match (&connection.stream).read(&mut buffer) {
                            Ok(0) => return Step::Gone,
                            Ok(number) => connection.input.extend_from_slice(&buffer[..number]),
                            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                            Err(_) => return Step::Gone,
                        }
                    }
                    if events & (HANG_UP | ERROR) != 0 {
                        return Step::Gone;
                    }
                }
                match server.flush(connection) {
                    Step::Done => server.turn(connection),
                    step => step,
                }
            });
        }
        let now = now();
        while let Some(&Reverse((time, fd, generation))) = server.due.peek() {
            if time > now {
                break;
            }
            server.due.pop();
            server.with(fd, |server, connection| {
                if connection.generation != generation {
                    return Step::Waits;
                }
                if let Some(answer) = connection.answer.as_mut() {
                    answer.scheduled = false;
                }
                server.turn(connection)
            });
        }
    }
}
