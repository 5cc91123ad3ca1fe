//! TLS towards clients and towards workers.

use crate::support::{
    Act, Ask, Authority, Conn, Lb, Proto, chat_body_of, echo, eventually, lb, streaming_gated,
};

const H2_FIRST: &[u8] = b"\x02h2\x08http/1.1";
const H1_ONLY: &[u8] = b"\x08http/1.1";

async fn with_listener() -> (Lb, Authority) {
    let authority = Authority::new("listener's authority");
    let scene = lb().worker(echo());
    let (cert, key) = authority.issue().write(scene.folder());
    let tls = format!("tls: {{cert: {}, key: {}}}", cert.display(), key.display());
    (scene.config(&tls).start().await, authority)
}

#[tokio::test]
async fn the_listener_speaks_what_alpn_chooses() {
    let (lb, authority) = with_listener().await;
    for (offer, proto, chosen) in [
        (H2_FIRST, Proto::H2, Some(&b"h2"[..])),
        (H1_ONLY, Proto::H1, Some(&b"http/1.1"[..])),
        (b"", Proto::H1, None),
    ] {
        let (mut conn, spoken, alpn) = Conn::open_tls(lb.tls_addr(), authority.cert(), offer).await;
        assert_eq!((spoken, alpn.as_deref()), (proto, chosen));
        for bytes in [6 << 10, 1_700_000] {
            for pieces in [None, Some(9_000)] {
                let mut ask = Ask::post("/v1/chat/completions", chat_body_of(bytes));
                ask.piece_bytes = pieces;
                let answer = conn.ask(&ask).await;
                assert_eq!(answer.echo().sha256, ask.sha256(), "{proto:?} {bytes}");
                answer.assert_stamped();
            }
        }
    }
    // The plain listener is there all the same.
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    lb.idle().await;
}

#[tokio::test]
async fn a_stream_and_its_cancel_pass_through_tls() {
    let (lb, authority) = with_listener().await;
    lb.workers[0].set_act(Act::Stream { events: 3, gated: true });
    for (count, offer) in [(1, H2_FIRST), (2, H1_ONLY)] {
        let (mut conn, ..) = Conn::open_tls(lb.tls_addr(), authority.cert(), offer).await;
        lb.workers[0].let_go(1);
        let response = conn.send(&Ask::stream("hello")).await.expect("an answer");
        assert_eq!(response.status(), 200);
        drop((response, conn));
        eventually("the worker learns", async || lb.workers[0].cancels().len() >= count).await;
    }
    lb.idle().await;
}

async fn bodies_pass(lb: &Lb) {
    for bytes in [6 << 10, 78_000, 1_700_000] {
        for ask in [
            Ask::post("/v1/chat/completions", chat_body_of(bytes)),
            Ask::post("/v1/chat/completions", chat_body_of(bytes)).in_pieces(9_000),
            Ask::post("/v1/chat/completions", chat_body_of(bytes)).h2(),
        ] {
            assert_eq!(lb.ask(&ask).await.echo().sha256, ask.sha256(), "{bytes}");
        }
    }
}

async fn known_authority(host: &str, extra: &str) {
    let authority = Authority::new("worker's authority");
    let worker = echo().models(&["m"]).tls(authority.issue()).host(host);
    let scene = lb().worker(if extra.is_empty() { worker } else { worker.yaml(extra) });
    let ca = authority.write(scene.folder(), "ca.pem");
    let lb = scene.config(&format!("upstream_tls: {{ca: {}}}", ca.display())).start().await;
    assert_eq!(lb.status(0).await["health"], "healthy");
    bodies_pass(&lb).await;
}

#[tokio::test]
async fn a_worker_with_a_certificate_of_a_known_authority_is_used_by_its_name() {
    known_authority("localhost", "").await;
}

#[tokio::test]
async fn a_worker_with_a_certificate_of_a_known_authority_is_used_by_its_address_and_tls_name() {
    known_authority("127.0.0.1", "tls_name: localhost").await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_taken() {
    let authority = Authority::new("worker's authority");
    let identity = authority.issue_for("elsewhere.example");
    let scene = lb().worker(echo().tls(identity).host("localhost"));
    let ca = authority.write(scene.folder(), "ca.pem");
    let lb = scene.config(&format!("upstream_tls: {{ca: {}}}", ca.display())).start().await;
    lb.health_is(0, "unhealthy").await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
}

#[tokio::test]
async fn a_worker_with_any_certificate_is_used_without_verification() {
    let authority = Authority::new("nobody");
    let lb = lb()
        .worker(echo().tls(authority.issue()))
        .config("upstream_tls: {verify: false}")
        .start()
        .await;
    assert_eq!(lb.status(0).await["health"], "healthy");
    bodies_pass(&lb).await;
}

#[tokio::test]
async fn a_stream_of_a_tls_worker_passes_event_by_event() {
    let authority = Authority::new("nobody");
    let lb = lb()
        .worker(streaming_gated(5).tls(authority.issue()))
        .config("upstream_tls: {verify: false}")
        .start()
        .await;
    let mut open = lb.open(&Ask::stream("hello")).await;
    for _ in 0..5 {
        lb.workers[0].let_go(1);
        assert!(open.event().await.expect("a stream").is_some());
    }
    assert_eq!(open.rest().await.1, Ok(()));
}

#[tokio::test]
async fn a_worker_with_a_certificate_of_another_authority_is_unhealthy_and_gets_nothing() {
    let (known, other) = (Authority::new("known"), Authority::new("other"));
    for extra in ["", "health: {kind: tcp}"] {
        let scene = lb().worker(echo().tls(other.issue()).host("localhost"));
        let ca = known.write(scene.folder(), "ca.pem");
        let mut scene = scene.config(&format!("upstream_tls: {{ca: {}}}", ca.display()));
        if !extra.is_empty() {
            scene = scene.config(extra);
        }
        let lb = scene.start().await;
        if extra.is_empty() {
            lb.health_is(0, "unhealthy").await;
            lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
        } else {
            // A check by TCP does not look at certificates; the request itself does.
            lb.health_is(0, "healthy").await;
            let answer = lb.ask(&Ask::chat("hello")).await;
            answer.assert_error(502, "worker_unreachable");
        }
        assert_eq!(lb.request_count(), 0);
    }
}
