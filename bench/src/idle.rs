//! Streams that have begun and are silent: the worker that gives them and the client that holds them.
//!
//! Both are plain sockets with a few bytes each: two processes hold ten thousand without effort.

use std::{io::Error, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// How long a stream may take to begin.
const PATIENCE: Duration = Duration::from_mins(1);
/// Longest header of a request or an answer.
const HEADER_BYTES_MAX: usize = 16 << 10;

const HEALTHY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 57\r\n\r\n{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\"}]}   ";
const HEADER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";

/// Serves as a worker: a POST gets a header and one event, then nothing until the other side leaves.
pub async fn serve(listener: TcpListener) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let _ = answer(socket).await;
        });
    }
}

async fn answer(mut socket: TcpStream) -> Result<(), Error> {
    loop {
        let (header, body) = read_header(&mut socket).await?;
        let length = content_length(&header);
        let mut left = length.saturating_sub(body);
        let mut buffer = vec![0; 16 << 10];
        while left > 0 {
            let some = socket.read(&mut buffer).await?;
            if some == 0 {
                return Err(Error::other("left within its body"));
            }
            left = left.saturating_sub(some);
        }
        drop(buffer);
        if header.starts_with(b"GET") {
            socket.write_all(HEALTHY).await?;
            continue;
        }
        socket.write_all(HEADER).await?;
        let event = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
        socket.write_all(event.as_bytes()).await?;
        return socket.read(&mut [0]).await.map(drop);
    }
}

/// The header, and how many bytes of the body came with it.
async fn read_header(socket: &mut TcpStream) -> Result<(Vec<u8>, usize), Error> {
    let mut got = Vec::with_capacity(1 << 10);
    loop {
        if let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = got.len() - end - 4;
            got.truncate(end);
            return Ok((got, body));
        }
        if got.len() > HEADER_BYTES_MAX || socket.read_buf(&mut got).await? == 0 {
            return Err(Error::other("no header"));
        }
    }
}

fn content_length(header: &[u8]) -> usize {
    let header = String::from_utf8_lossy(header).to_ascii_lowercase();
    let value = header.lines().find_map(|line| line.strip_prefix("content-length:"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Sends `body` and waits for the first event of the answer; the stream stays open.
///
/// # Errors
/// When no event comes in time.
pub async fn open(proxy: SocketAddr, body: &[u8]) -> Result<TcpStream, Error> {
    let begun = async {
        let mut socket = TcpStream::connect(proxy).await?;
        let header = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(header.as_bytes()).await?;
        socket.write_all(body).await?;
        let mut got = Vec::with_capacity(1 << 10);
        while !got.ends_with(b"\n\n\r\n") {
            if got.len() > HEADER_BYTES_MAX || socket.read_buf(&mut got).await? == 0 {
                let text = String::from_utf8_lossy(&got).into_owned();
                return Err(Error::other(format!("no event came: {text}")));
            }
        }
        Ok(socket)
    };
    timeout(PATIENCE, begun).await.map_err(|_| Error::other("no event came in time"))?
}
