//! Websockets (RFC 6455) without extensions, as far as both ends of the rig need them.
#![allow(dead_code)]

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

pub struct Frame {
    pub last: bool,
    pub kind: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
    /// Bytes that it took.
    pub length: usize,
}

/// The first frame of what was read, when all of it is there.
pub fn frame_of(input: &[u8]) -> Option<Frame> {
    let (first, second) = (*input.first()?, *input.get(1)?);
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mut size = (second & 0x7f) as usize;
    if extended > 0 {
        size = input.get(2..2 + extended)?.iter().fold(0, |size, &byte| size << 8 | byte as usize);
    }
    let masked = second & 0x80 != 0;
    let begin = 2 + extended + if masked { 4 } else { 0 };
    let mut payload = input.get(begin..begin.checked_add(size)?)?.to_vec();
    if masked {
        let mask = &input[begin - 4..begin];
        payload.iter_mut().enumerate().for_each(|(index, byte)| *byte ^= mask[index % 4]);
    }
    Some(Frame { last: first & 0x80 != 0, kind: first & 0xf, masked, payload, length: begin + size })
}

/// Appends a frame. A client's has a mask, a server's has none.
pub fn put_frame(output: &mut Vec<u8>, kind: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    output.push(0x80 | kind);
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        size if size < 126 => output.push(masked | size as u8),
        size if size < 1 << 16 => {
            output.push(masked | 126);
            output.extend_from_slice(&(size as u16).to_be_bytes());
        }
        size => {
            output.push(masked | 127);
            output.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    match mask {
        None => output.extend_from_slice(payload),
        Some(mask) => {
            output.extend_from_slice(&mask);
            output.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
        }
    }
}

/// What a server answers to a client's `Sec-WebSocket-Key`.
pub fn accept_of(key: &str) -> String {
    base64(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

fn sha1(text: &[u8]) -> Vec<u8> {
    let mut state: [u32; 5] = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0];
    let mut padded = text.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(text.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks(64) {
        let mut words: Vec<u32> =
            block.chunks(4).map(|each| u32::from_be_bytes([each[0], each[1], each[2], each[3]])).collect();
        for index in 16..80 {
            let word = words[index - 3] ^ words[index - 8] ^ words[index - 14] ^ words[index - 16];
            words.push(word.rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (index, word) in words.iter().enumerate() {
            let (mixed, constant) = match index / 20 {
                0 => (b & c | !b & d, 0x5a827999),
                1 => (b ^ c ^ d, 0x6ed9eba1),
                2 => (b & c | b & d | c & d, 0x8f1bbcdc),
                _ => (b ^ c ^ d, 0xca62c1d6u32),
            };
            let next = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            e = d;
            d = c;
            c = b.rotate_left(30);
            b = a;
            a = next;
        }
        for (sum, value) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    state.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut found = String::new();
    for group in bytes.chunks(3) {
        let value = group.iter().fold(0, |value, &byte| value << 8 | byte as u32) << (8 * (3 - group.len()));
        for index in 0..4 {
            let digit = ALPHABET[(value >> (18 - 6 * index) & 63) as usize];
            found.push(if index <= group.len() { digit as char } else { '=' });
        }
    }
    found
}
