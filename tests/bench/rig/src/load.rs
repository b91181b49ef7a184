//! The load generator: one thread, one epoll; it prints one line of JSON.
//!
//!     load --port P --kind chat|resp|ws --path /v1/responses --key KEY --params "n=200;b=16" ...
//!
//! `--kind` is Chat Completions, Responses, or Responses over a websocket; `--params` is a marker for the backend.
//!
//!     --mode loop    so many connections (--c) ask --total times, each again when it has its answer
//!     --mode hold    --c paced streams are opened over --ramp-ms; then a window of --window seconds is measured
//!     --mode abort   --c streams are cut --abort-delay-ms after --abort-after reads, and the backend at port --up is
//!                    asked, for --abort-wait-ms at most, when it saw each of them end
//!
//! `--stream 0` asks for whole answers, `--extra` makes prompts so many bytes longer, `--pids 1,2` are the server's
//! processes, of which CPU and memory are read. Nothing waits longer than `--timeout` seconds in all.
mod sys;
mod websocket;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::io::{AsRawFd, RawFd};
use std::time::Duration;
use sys::{cpu_of, find, header, now_us, Epoll, Options, ERROR, HANG_UP, IN, OUT, PEER_DONE};
use websocket::{accept_of, frame_of, put_frame, CLOSE, PING, PONG, TEXT};

const MODEL: &str = "gpt-5.1-codex";
/// The nonce of RFC 6455's example; and masks are for proxies, which loopback has not.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// What marks the end may be cut between two reads.
const LONGEST_MARK: usize = 40;

struct Server {
    port: u16,
    kind: String,
    path: String,
    key: String,
    params: String,
    extra: String,
    stream: bool,
}

impl Server {
    fn is_websocket(&self) -> bool {
        self.kind == "ws"
    }

    fn body(&self, id: u64) -> String {
        let (stream, params, extra) = (self.stream, &self.params, &self.extra);
        let prompt = format!("@@{params};u={id}@@ say hello {extra}");
        if self.kind == "chat" {
            return format!(
                r#"{{"model":"{MODEL}","messages":[{{"role":"system","content":"You are helpful."}},{{"role":"user","content":"{prompt}"}}],"stream":{stream}}}"#
            );
        }
        let kind = if self.is_websocket() { r#""type":"response.create","# } else { "" };
        format!(
            r#"{{{kind}"model":"{MODEL}","instructions":"You are helpful.","input":[{{"type":"message","role":"user","content":[{{"type":"input_text","text":"{prompt}"}}]}}],"store":false,"stream":{stream}}}"#
        )
    }

    fn message(&self, id: u64) -> Vec<u8> {
        let mut frame = vec![];
        put_frame(&mut frame, TEXT, self.body(id).as_bytes(), Some(MASK));
        frame
    }

    fn request(&self, id: u64) -> Vec<u8> {
        let (path, port, key, body) = (&self.path, self.port, &self.key, self.body(id));
        format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nAccept: application/json\r\nUser-Agent: OpenAI/Python 2.0.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    fn upgrade(&self) -> Vec<u8> {
        let (path, port, key) = (&self.path, self.port, &self.key);
        format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\nUser-Agent: OpenAI/Python 2.0.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// One request and what has come of its answer. Times are microseconds, 0 when it has not been.
#[derive(Default)]
struct Asked {
    id: u64,
    begun: u64,
    first_piece: u64,
    status: u16,
    chunked: bool,
    length: Option<usize>,
    got: usize,
    /// Bytes of the chunk that are missing; below zero: of the line's end behind it.
    chunk: i64,
    /// What was read of the body and not looked at yet, and what may be half a mark.
    text: Vec<u8>,
    /// The protocol's end of the answer, and the API's.
    over: bool,
    completed: bool,
    closes: bool,
    pieces: u64,
    last_piece: u64,
    reads: u64,
    cut: bool,
}

struct Connection {
    stream: TcpStream,
    fd: RawFd,
    input: Vec<u8>,
    output: Vec<u8>,
    websocket: bool,
    asked: Asked,
}

impl Connection {
    /// True when all is written.
    fn flush(&mut self, epoll: &Epoll) -> bool {
        let mut sent = 0;
        while sent < self.output.len() {
            match self.stream.write(&self.output[sent..]) {
                Ok(number) => sent += number,
                Err(_) => break, // not yet; or the read says what is wrong
            }
        }
        self.output.drain(..sent);
        let more = if self.output.is_empty() { 0 } else { OUT };
        epoll.change(self.fd, IN | PEER_DONE | more);
        more == 0
    }

    /// Takes the head of the answer. False while it is not complete.
    fn take_head(&mut self) -> bool {
        let end = match find(&self.input, b"\r\n\r\n") {
            Some(end) => end + 4,
            None => return false,
        };
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end);
        let lower = head.to_ascii_lowercase();
        let status = lower.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        if status == 100 {
            return self.take_head();
        }
        let asked = &mut self.asked;
        asked.status = status;
        asked.chunked = header(&lower, "transfer-encoding") == Some("chunked");
        asked.length = header(&lower, "content-length").and_then(|value| value.parse().ok());
        // Anywhere: Werkzeug puts its own field behind the application's.
        asked.closes = lower.contains("\r\nconnection: close") || lower.starts_with("http/1.0");
        self.websocket = status == 101 && head.contains(&accept_of(KEY));
        true
    }

    /// Moves what is there of the body to the text.
    fn take_body(&mut self) {
        if self.websocket {
            return self.take_frames();
        }
        let asked = &mut self.asked;
        if !asked.chunked {
            asked.got += self.input.len();
            asked.text.append(&mut self.input);
            asked.over = asked.length.map_or(false, |length| asked.got >= length);
            return;
        }
        let mut from = 0;
        while !asked.over {
            let left = &self.input[from..];
            if asked.chunk > 0 {
                let number = left.len().min(asked.chunk as usize);
                asked.text.extend_from_slice(&left[..number]);
                asked.chunk -= number as i64;
                from += number;
                if asked.chunk > 0 {
                    break;
                }
                asked.chunk = -2;
            } else if asked.chunk < 0 {
                let number = left.len().min(-asked.chunk as usize);
                asked.chunk += number as i64;
                from += number;
                if asked.chunk < 0 {
                    break;
                }
            } else {
                let line = match find(left, b"\r\n") {
                    Some(line) => line,
                    None => break,
                };
                let digits = String::from_utf8_lossy(&left[..line]);
                asked.chunk = i64::from_str_radix(digits.split(';').next().unwrap_or("").trim(), 16).unwrap_or(0);
                if asked.chunk == 0 {
                    if left.len() < line + 4 {
                        break;
                    }
                    asked.over = true;
                    from += 2;
                }
                from += line + 2;
            }
        }
        self.input.drain(..from);
    }

    fn take_frames(&mut self) {
        let mut from = 0;
        while let Some(frame) = frame_of(&self.input[from..]) {
            from += frame.length;
            match frame.kind {
                _ if frame.masked => self.asked.closes = true,
                CLOSE => self.asked.closes = true,
                PING => put_frame(&mut self.output, PONG, &frame.payload, Some(MASK)),
                PONG => {}
                _ => self.asked.text.extend_from_slice(&frame.payload),
            }
        }
        self.input.drain(..from);
    }

    /// Finds the pieces in the text, and the end.
    fn look(&mut self, server: &Server, now: u64, delays: &mut Vec<u64>) {
        let asked = &mut self.asked;
        let mut from = 0;
        while let Some(next) = asked.text[from..].iter().position(|&byte| byte == b'~') {
            let begin = from + next;
            let digits = match asked.text.get(begin + 1..begin + 13) {
                Some(digits) => digits,
                None => break,
            };
            from = begin + 1;
            let made = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if let Some(made) = made.filter(|&made| made > asked.last_piece) {
                // Each counts once: the API repeats the text at the end.
                if asked.first_piece == 0 {
                    asked.first_piece = now;
                }
                asked.last_piece = made;
                asked.pieces += 1;
                delays.push(now.saturating_sub(made));
            }
        }
        let has = |mark: &[u8]| find(&asked.text, mark).is_some();
        asked.completed = asked.completed
            || match (server.stream || server.is_websocket(), server.kind.as_str()) {
                (false, _) => asked.over,
                (true, "chat") => has(b"data: [DONE]"),
                (true, _) => has(b"\"type\":\"response.completed\"") || has(b"\"type\": \"response.completed\""),
            };
        asked.over = asked.over || self.websocket && asked.completed;
        if asked.status == 200 || asked.status == 101 {
            asked.text.drain(..asked.text.len().saturating_sub(LONGEST_MARK));
        }
    }
}

fn distribution(values: &mut [u64]) -> String {
    if values.is_empty() {
        return "null".to_string();
    }
    values.sort_unstable();
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
    format!(
        r#"{{"n":{},"mean":{mean:.1},"p50":{},"p90":{},"p99":{},"max":{}}}"#,
        values.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    )
}

fn cpu(pids: &[i32]) -> u64 {
    pids.iter().map(|&pid| cpu_of(pid)).sum()
}

/// KiB.
fn memory(pids: &[i32]) -> u64 {
    let of = |pid: &i32| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1)).and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    pids.iter().map(of).sum()
}

/// The answers that the backend saw cut: the request's number and when.
fn seen_cut(port: u16) -> Vec<(u64, u64)> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /__stats HTTP/1.1\r\nhost: backend\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().unwrap_or_default();
    let list = answer.split("\"early\":[").nth(1).unwrap_or("");
    let numbers = |entry: &str| -> Option<(u64, u64)> {
        let mut words = entry.trim_matches(|letter| "[]{}".contains(letter)).split(',').map(|word| word.parse().ok());
        Some((words.next()??, words.next()??))
    };
    list.split("],[").filter_map(numbers).collect()
}

/// The window of --mode hold, from when all streams are open.
struct Window {
    begun: u64,
    cpu: u64,
    pieces: u64,
}

struct Load {
    server: Server,
    epoll: Epoll,
    mode: String,
    connections: Vec<Option<Box<Connection>>>,
    idle: VecDeque<RawFd>,
    most: usize,
    limit: u64,
    ids: u64,
    issued: u64,
    finished: u64,
    live: usize,
    open: usize,
    pieces: u64,
    good: u64,
    errors: u64,
    said: Vec<String>,
    first: Vec<u64>,
    delays: Vec<u64>,
    durations: Vec<u64>,
    abort_after: u64,
    abort_delay: u64,
    /// Descriptors that are to be cut, and when; the requests that were, and when.
    to_cut: Vec<(RawFd, u64)>,
    cut: Vec<(u64, u64)>,
    buffer: Vec<u8>,
}

impl Load {
    fn error(&mut self, text: String) {
        self.errors += 1;
        if self.said.len() < 4 {
            let plain = |letter: char| if letter == '"' || letter == '\\' || letter < ' ' { '\'' } else { letter };
            self.said.push(format!("\"{}\"", text.chars().take(260).map(plain).collect::<String>()));
        }
    }

    fn issue(&mut self) {
        self.issued += 1;
        let id = self.ids + self.issued;
        let idle = self.idle.pop_front().and_then(|fd| self.connections[fd as usize].take());
        let mut connection = match idle {
            Some(connection) => connection,
            None => match sys::connecting(self.server.port) {
                Err(error) => {
                    self.finished += 1;
                    return self.error(format!("connect: {error}"));
                }
                Ok(stream) => {
                    let fd = stream.as_raw_fd();
                    self.epoll.add(fd, IN | OUT | PEER_DONE);
                    Box::new(Connection {
                        stream,
                        fd,
                        input: vec![],
                        output: vec![],
                        websocket: false,
                        asked: Asked::default(),
                    })
                }
            },
        };
        connection.asked = Asked { id, begun: now_us(), ..Asked::default() };
        connection.output = match (self.server.is_websocket(), connection.websocket) {
            (false, _) => self.server.request(id),
            (true, false) => self.server.upgrade(),
            (true, true) => {
                connection.asked.status = 101;
                self.server.message(id)
            }
        };
        connection.flush(&self.epoll);
        self.live += 1;
        let fd = connection.fd as usize;
        if self.connections.len() <= fd {
            self.connections.resize_with(fd + 1, || None);
        }
        self.connections[fd] = Some(connection);
    }

    /// Takes what a connection has. True when the peer has closed it.
    fn read(&mut self, connection: &mut Connection) -> bool {
        while !connection.asked.over {
            let number = match connection.stream.read(&mut self.buffer) {
                Ok(0) => return true,
                Ok(number) => number,
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            };
            let now = now_us();
            connection.asked.reads += 1;
            connection.input.extend_from_slice(&self.buffer[..number]);
            if connection.asked.status == 0 {
                if !connection.take_head() {
                    continue;
                }
                if connection.websocket {
                    connection.output = self.server.message(connection.asked.id);
                }
            }
            let (pieces, begun) = (connection.asked.pieces, connection.asked.first_piece);
            connection.take_body();
            connection.look(&self.server, now, &mut self.delays);
            self.pieces += connection.asked.pieces - pieces;
            if begun == 0 && connection.asked.first_piece > 0 {
                self.open += 1;
                self.first.push(now - connection.asked.begun);
            }
            if !connection.output.is_empty() {
                connection.flush(&self.epoll);
            }
            if connection.asked.closes && connection.websocket {
                return true;
            }
        }
        false
    }

    fn handle(&mut self, fd: RawFd, events: u32) {
        let mut connection = match self.connections[fd as usize].take() {
            Some(connection) => connection,
            None => return,
        };
        if events & OUT != 0 && !connection.output.is_empty() {
            connection.flush(&self.epoll);
        }
        let mut gone = false;
        if events & (IN | PEER_DONE | HANG_UP | ERROR) != 0 {
            if self.idle.contains(&fd) {
                // The server has closed an idle connection.
                self.idle.retain(|&each| each != fd);
                return;
            }
            gone = self.read(&mut connection);
        }
        let asked = &mut connection.asked;
        if self.mode == "abort" && asked.first_piece > 0 && asked.reads >= self.abort_after && !asked.cut {
            asked.cut = true;
            self.to_cut.push((fd, now_us() + self.abort_delay));
        }
        if !gone && !asked.over {
            self.connections[fd as usize] = Some(connection);
            return;
        }
        self.finished += 1;
        self.live -= 1;
        let until_end = !asked.chunked && asked.length.is_none() && !connection.websocket;
        let over = asked.over || gone && until_end;
        if !self.server.stream && until_end {
            asked.completed = over;
        }
        if over && asked.completed && (asked.status == 200 || connection.websocket) {
            self.good += 1;
            self.durations.push(now_us() - asked.begun);
        } else {
            let said = String::from_utf8_lossy(&asked.text).into_owned();
            let text = format!("status={} completed={} over={over} {said}", asked.status, asked.completed);
            self.error(text);
        }
        if !gone && !connection.asked.closes {
            self.idle.push_back(fd);
            self.connections[fd as usize] = Some(connection);
        }
    }

    /// Closes the clients whose time has come.
    fn cut(&mut self) {
        let now = now_us();
        let due: Vec<RawFd> = self.to_cut.iter().filter(|each| each.1 <= now).map(|each| each.0).collect();
        self.to_cut.retain(|each| each.1 > now);
        for fd in due {
            if let Some(connection) = self.connections[fd as usize].take() {
                self.cut.push((connection.asked.id, now_us()));
                self.live -= 1;
                self.finished += 1;
            }
        }
    }
}

fn main() {
    let options = Options::new();
    sys::raise_descriptor_limit();
    let kind = options.text("kind", "chat");
    let default = if kind == "chat" { "/v1/chat/completions" } else { "/v1/responses" };
    let server = Server {
        port: options.number("port", 8000) as u16,
        path: options.text("path", default),
        key: options.text("key", "sk-test"),
        params: options.text("params", "n=50;b=16"),
        extra: "p".repeat(options.number("extra", 0) as usize),
        stream: options.number("stream", 1) == 1,
        kind,
    };
    let (mode, most) = (options.text("mode", "loop"), options.number("c", 1));
    let pids: Vec<i32> = options.text("pids", "").split(',').filter_map(|word| word.parse().ok()).collect();
    let ramp = options.number("ramp-ms", 0) * 1000;
    let length = options.number("window", 5) * 1_000_000;
    let until_open = ramp + options.number("open-timeout", 20) * 1_000_000;
    let timeout = options.number("timeout", 60) * 1_000_000;
    let mut load = Load {
        limit: if mode == "loop" { options.number("total", 10) } else { most },
        most: most as usize,
        ids: now_us() % 100_000_000 * 10_000,
        abort_after: options.number("abort-after", 3),
        abort_delay: options.number("abort-delay-ms", 0) * 1000,
        server,
        mode,
        epoll: Epoll::new(),
        connections: vec![],
        idle: VecDeque::new(),
        issued: 0,
        finished: 0,
        live: 0,
        open: 0,
        pieces: 0,
        good: 0,
        errors: 0,
        said: vec![],
        first: vec![],
        delays: vec![],
        durations: vec![],
        to_cut: vec![],
        cut: vec![],
        buffer: vec![0; 1 << 18],
    };
    let (memory_before, cpu_before, begun) = (memory(&pids), cpu(&pids), now_us());
    let mut window: Option<Window> = None;
    let mut more = String::new();
    loop {
        while load.issued < load.limit && load.live < load.most {
            if now_us() < begun + ramp * load.issued / load.limit {
                break;
            }
            load.issue();
        }
        let now = now_us();
        if load.finished >= load.limit {
            break;
        }
        if load.mode == "hold" {
            match &window {
                None if load.open as u64 + load.errors >= most || now > begun + until_open => {
                    load.delays.clear();
                    window = Some(Window { begun: now_us(), cpu: cpu(&pids), pieces: load.pieces });
                }
                Some(window) if now >= window.begun + length => {
                    let (cpu, pieces) = (cpu(&pids) - window.cpu, load.pieces - window.pieces);
                    let took = (now_us() - window.begun) as f64;
                    more = format!(
                        r#""open":{},"win_s":{:.3},"win_chunks":{pieces},"win_cpu_us_per_chunk":{:.2},"win_cpu_frac":{:.3},"rss_end_kb":{},"#,
                        load.open,
                        took / 1e6,
                        cpu as f64 / 1e3 / pieces.max(1) as f64,
                        cpu as f64 / 1e3 / took,
                        memory(&pids)
                    );
                    break;
                }
                _ => {}
            }
        }
        if now > begun + timeout {
            let text = format!("timeout: {} live, {} finished, {} opened", load.live, load.finished, load.open);
            load.error(text);
            break;
        }
        load.cut();
        let wait = match load.mode.as_str() {
            _ if load.issued < load.limit && load.live < load.most => 1,
            "abort" => 1,
            "hold" => 5,
            _ => 100,
        };
        for (fd, events) in load.epoll.wait(wait) {
            load.handle(fd, events);
        }
    }
    let (took, cpu, memory) = ((now_us() - begun) as f64, (cpu(&pids) - cpu_before) as f64, memory(&pids));
    if load.mode == "abort" {
        let deadline = now_us() + options.number("abort-wait-ms", 8000) * 1000;
        loop {
            let seen = seen_cut(options.number("up", 18000) as u16);
            let when = |id: u64| seen.iter().rev().find(|each| each.0 == id).map(|each| each.1);
            let found = load.cut.iter().filter_map(|(id, cut)| when(*id).map(|seen| seen.saturating_sub(*cut)));
            let mut delays: Vec<u64> = found.collect();
            let missing = load.cut.len() - delays.len();
            if missing == 0 || now_us() > deadline {
                let delays = distribution(&mut delays);
                more = format!(r#""abort_to_upstream_close_us":{delays},"abort_never_seen":{missing},"#);
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    println!(
        r#"{{"mode":"{}","kind":"{}","stream":{},"c":{most},"params":"{}","reqs":{},"ok":{},"errors":{},"wall_s":{:.3},"req_s":{:.1},"chunks":{},"chunks_s":{:.0},"cpu_ms_per_req":{:.4},"cpu_us_per_chunk":{:.2},"rss0_kb":{memory_before},"rss1_kb":{memory},{more}"ttfd_us":{},"lat_us":{},"dur_us":{},"errs":[{}]}}"#,
        load.mode,
        load.server.kind,
        load.server.stream,
        load.server.params,
        load.issued,
        load.good,
        load.errors,
        took / 1e6,
        load.good as f64 * 1e6 / took,
        load.pieces,
        load.pieces as f64 * 1e6 / took,
        cpu / 1e6 / load.issued.max(1) as f64,
        cpu / 1e3 / load.pieces.max(1) as f64,
        distribution(&mut load.first),
        distribution(&mut load.delays),
        distribution(&mut load.durations),
        load.said.join(",")
    );
}
