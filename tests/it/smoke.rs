//! The harness itself works.

use crate::support::{Ask, echo, lb};

#[tokio::test]
async fn a_chat_reaches_a_worker_and_its_answer_comes_back() {
    let lb = lb().worker(echo()).start().await;
    for ask in [Ask::chat("hello"), Ask::chat("hello").h2()] {
        let answer = lb.ask(&ask).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.echo().sha256, ask.sha256());
        answer.assert_stamped();
        assert_eq!(answer.header("x-router-backend"), "w0");
    }
    assert_eq!(lb.workers[0].request_count(), 2);
}
