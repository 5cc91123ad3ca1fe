//! Peers of all kinds, byte by byte.

use tokio::{io::AsyncReadExt, net::TcpListener};

use super::*;

fn greeting(minor: u8, mechanism: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, minor];
    bytes.extend(mechanism);
    bytes.resize(64, 0);
    bytes
}

fn ready(socket_type: &[u8]) -> Vec<u8> {
    let property =
        [&b"\x0bSocket-Type\0\0\0"[..], &[socket_type.len() as u8], socket_type].concat();
    let body = [b"\x05READY\x08Resource\0\0\0\x01x", &property[..]].concat();
    [&[COMMAND, body.len() as u8], &body[..]].concat()
}

/// A peer that says `bytes` at once, then lets `then` go on.
async fn peer<T: Future<Output = ()> + Send>(
    bytes: Vec<u8>,
    then: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a subscriber");
        stream.write_all(&bytes).await.expect("it reads");
        then(stream).await;
    });
    port
}

async fn holding(bytes: Vec<u8>) -> u16 {
    peer(bytes, |stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await
}

async fn refused(bytes: Vec<u8>) -> String {
    let port = holding(bytes).await;
    let refused = Connection::connect("127.0.0.1", port, Role::Sub).await;
    refused.expect_err("not for us").to_string()
}

#[tokio::test]
async fn says_why_a_peer_is_none() {
    let http = b"HTTP/1.1 400 Bad Request\r\n".repeat(3);
    assert_eq!(refused(http).await, "the peer does not speak ZMTP 3");
    let mut old = greeting(0, b"NULL");
    old[10] = 1;
    assert_eq!(refused(old).await, "the peer does not speak ZMTP 3");
    let curve = greeting(1, b"CURVE");
    assert_eq!(refused(curve).await, "the peer asks for encryption or a password");
    let pull = [greeting(1, b"NULL"), ready(b"PUSH")].concat();
    assert_eq!(refused(pull).await, "the peer's socket is of a type that is none for us");
    let early = [greeting(1, b"NULL"), b"\0\x01x".to_vec()].concat();
    assert_eq!(refused(early).await, "the peer sent a message before it was ready");
    let error = [greeting(1, b"NULL"), b"\x04\x06\x05ERROR".to_vec()].concat();
    assert_eq!(refused(error).await, "the peer is not ready");
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up() {
    assert_eq!(refused(Vec::new()).await, "no connection within 3 s");
}

#[tokio::test]
async fn older_peers_get_a_subscription_they_know() {
    for (minor, wanted) in [(0, &b"\0\x03\x01kv"[..]), (1, b"\x04\x0c\x09SUBSCRIBEkv")] {
        let (tell, told) = tokio::sync::oneshot::channel();
        let bytes = [greeting(minor, b"NULL"), ready(b"XPUB")].concat();
        let port = peer(bytes, move |mut stream| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("it closes");
            let _ = tell.send(all);
        })
        .await;
        let mut connection =
            Connection::connect("127.0.0.1", port, Role::Sub).await.expect("a publisher");
        connection.subscribe(b"kv").await.expect("it reads");
        drop(connection);
        let all = told.await.expect("told");
        assert!(all.ends_with(wanted), "{all:?}");
    }
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_given_up() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let bytes = [greeting(1, b"NULL"), ready(b"PUB")].concat();
    let port = peer(bytes, move |mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("it closes");
        let _ = tell.send(all);
    })
    .await;
    let mut connection =
        Connection::connect("127.0.0.1", port, Role::Sub).await.expect("a publisher");
    connection.ping_after = Duration::from_millis(30);
    assert!(matches!(connection.recv().await, Err(Broken::Silent)));
    drop(connection);
    let all = told.await.expect("told");
    assert!(all.ends_with(&b"\x04\x07\x04PING\0\0".repeat(3)), "{all:?}");
}

#[tokio::test]
async fn pings_are_answered_and_frames_are_put_together() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut bytes = [greeting(1, b"NULL"), ready(b"PUB")].concat();
    bytes.extend(b"\x04\x09\x04PING\0\x0aab\x01\x01t\x01\0");
    bytes.extend(b"\x02\0\0\0\0\0\0\x01\x00");
    bytes.extend([7; 256]);
    bytes.extend(b"\0\0");
    let port = peer(bytes, move |mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("it closes");
        let _ = tell.send(all);
    })
    .await;
    let mut connection =
        Connection::connect("127.0.0.1", port, Role::Sub).await.expect("a publisher");
    let message = connection.recv().await.expect("a message");
    assert_eq!(message.iter().map(Bytes::len).collect::<Vec<_>>(), [1, 0, 256]);
    let message = connection.recv().await.expect("a message");
    assert_eq!(message.iter().map(Bytes::len).collect::<Vec<_>>(), [0]);
    // The answer goes out before the next read.
    let _ = timeout(Duration::from_millis(50), connection.recv()).await;
    drop(connection);
    assert!(told.await.expect("told").ends_with(b"\x04\x07\x04PONGab"));
}

#[tokio::test]
async fn what_is_too_much_is_refused_before_it_arrives() {
    for (bytes, why) in [
        (&b"\x02\0\0\0\0\x02\0\0\0"[..], "a message over"),
        (b"\x06\0\0\0\0\0\0\x10\x01", "a message over"),
        (&b"\x01\0".repeat(9), "too many frames"),
        (b"\x08\0", "unknown flags"),
        (b"\x80\0", "unknown flags"),
    ] {
        let all = [greeting(1, b"NULL"), ready(b"PUB"), bytes.to_vec()].concat();
        let port = holding(all).await;
        let mut connection =
            Connection::connect("127.0.0.1", port, Role::Sub).await.expect("a publisher");
        let broken = connection.recv().await.expect_err("too much");
        assert!(broken.is_garbage() && broken.to_string().contains(why), "{broken}");
    }
}
