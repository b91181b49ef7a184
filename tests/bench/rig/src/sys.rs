//! What both programs share: the few calls to Linux that the standard library does not have, and command-line options.
#![allow(dead_code)]
use std::net::TcpStream;
use std::os::raw::c_int;
use std::os::unix::io::{FromRawFd, RawFd};

#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
#[derive(Clone, Copy)]
pub struct Event {
    pub events: u32,
    pub data: u64,
}
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}
#[repr(C)]
struct Address {
    family: u16,
    port: u16,
    host: u32,
    zero: [u8; 8],
}
#[repr(C)]
struct Limit {
    current: u64,
    most: u64,
}

pub const IN: u32 = 0x1;
pub const OUT: u32 = 0x4;
pub const ERROR: u32 = 0x8;
pub const HANG_UP: u32 = 0x10;
pub const PEER_DONE: u32 = 0x2000;

extern "C" {
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(epoll: c_int, what: c_int, fd: c_int, event: *mut Event) -> c_int;
    fn epoll_wait(epoll: c_int, events: *mut Event, most: c_int, timeout: c_int) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const Address, length: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn getrlimit(resource: c_int, limit: *mut Limit) -> c_int;
    fn setrlimit(resource: c_int, limit: *const Limit) -> c_int;
}

pub struct Epoll {
    fd: RawFd,
    found: Vec<Event>,
}

impl Epoll {
    pub fn new() -> Epoll {
        Epoll { fd: unsafe { epoll_create1(0) }, found: vec![Event { events: 0, data: 0 }; 1024] }
    }

    fn control(&self, what: c_int, fd: RawFd, events: u32) {
        let mut event = Event { events, data: fd as u64 };
        unsafe { epoll_ctl(self.fd, what, fd, &mut event) };
    }

    pub fn add(&self, fd: RawFd, events: u32) {
        self.control(1, fd, events);
    }

    pub fn change(&self, fd: RawFd, events: u32) {
        self.control(3, fd, events);
    }

    /// Milliseconds, -1 for ever. Each is a descriptor and what is the matter with it.
    pub fn wait(&mut self, timeout: i32) -> Vec<(RawFd, u32)> {
        let number = unsafe { epoll_wait(self.fd, self.found.as_mut_ptr(), self.found.len() as c_int, timeout) };
        self.found[..number.max(0) as usize].iter().map(|each| (each.data as RawFd, each.events)).collect()
    }
}

/// A connection to a port of this machine that is still being made.
pub fn connecting(port: u16) -> std::io::Result<TcpStream> {
    let address = Address { family: 2, port: port.to_be(), host: u32::from_ne_bytes([127, 0, 0, 1]), zero: [0; 8] };
    let fd = unsafe { socket(2, 1 | 0o4000 | 0o2000000, 0) }; // SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    if unsafe { connect(fd, &address, 16) } != 0 {
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(115) {
            return Err(error); // anything but EINPROGRESS
        }
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The standard library listens with a queue of 128: a thousand clients at once need a longer one.
pub fn lengthen_queue(listener: RawFd) {
    unsafe { listen(listener, 4096) };
}

pub fn raise_descriptor_limit() {
    let mut limit = Limit { current: 0, most: 0 };
    unsafe {
        getrlimit(7, &mut limit);
        limit.current = limit.most;
        setrlimit(7, &limit);
    }
}

fn clock(number: c_int) -> Option<u64> {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    if unsafe { clock_gettime(number, &mut time) } != 0 {
        return None;
    }
    Some(time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64)
}

/// Nanoseconds of CLOCK_MONOTONIC, which is one clock for all processes.
pub fn now() -> u64 {
    clock(1).unwrap_or(0)
}

pub fn now_us() -> u64 {
    now() / 1000
}

/// Nanoseconds of CPU, user and kernel, that all threads of a process have taken: the kernel's clock of that process.
pub fn cpu_of(pid: i32) -> u64 {
    clock((!pid) << 3 | 2).unwrap_or(0)
}

pub fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let last = text.len().checked_sub(wanted.len())?;
    let mut from = 0;
    while from <= last {
        from += text[from..=last].iter().position(|&each| each == wanted[0])?;
        if &text[from..from + wanted.len()] == wanted {
            return Some(from);
        }
        from += 1;
    }
    None
}

/// A field of a head in lower case.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found == name).then(|| value.trim())
    })
}

/// Options as `--name value`.
pub struct Options(Vec<String>);

impl Options {
    pub fn new() -> Options {
        Options(std::env::args().skip(1).collect())
    }

    pub fn text(&self, name: &str, default: &str) -> String {
        let wanted = format!("--{name}");
        let found = self.0.chunks(2).filter(|pair| pair[0] == wanted).last();
        found.and_then(|pair| pair.get(1)).map_or(default.to_string(), |value| value.clone())
    }

    pub fn number(&self, name: &str, default: u64) -> u64 {
        let value = self.text(name, "");
        if value.is_empty() {
            return default;
        }
        value.parse().unwrap_or_else(|_| {
            eprintln!("--{name} wants a number, not {value}");
            std::process::exit(2)
        })
    }
}
