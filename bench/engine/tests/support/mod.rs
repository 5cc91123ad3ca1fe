//! A client as plain as can be, so that the tests see what is on the wire.

#![allow(dead_code, reason = "each test file uses its own part of this")]

pub(crate) mod receiver;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// One request on a connection of its own, its response read to the end.
pub(crate) fn request(url: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = send(url, method, path, body);
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).expect("the response ends");
    let raw = String::from_utf8(raw).expect("text");
    let (head, body) = raw.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { chunks(body).concat() } else { body.to_owned() })
}

/// Sends a request and leaves its response to be read.
pub(crate) fn send(url: &str, method: &str, path: &str, body: &str) -> TcpStream {
    let address = url.strip_prefix("http://").expect("a URL of an engine");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         x-request-id: me\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it is sent");
    stream
}

/// Posts JSON and reads JSON.
pub(crate) fn post(url: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, body) = request(url, "POST", path, &body.to_string());
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// The `data` of all events of a streamed answer.
pub(crate) fn stream(url: &str, path: &str, body: &Value) -> Vec<String> {
    let (status, body) = request(url, "POST", path, &body.to_string());
    assert_eq!(status, 200, "{body}");
    let events = body.split_terminator("\n\n");
    events.map(|event| event.strip_prefix("data: ").expect("data").to_owned()).collect()
}

/// Waits for something to come true.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

fn chunks(mut body: &str) -> Vec<String> {
    let mut chunks = Vec::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("hexadecimal");
        if size == 0 {
            return chunks;
        }
        chunks.push(rest[..size].to_owned());
        body = &rest[size + 2..];
    }
}
