//! A report listener that remembers what it got and answers as told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// Status and body for a message to a path; `None` hangs up.
pub(crate) type Answers = dyn FnMut(&str, &Value) -> Option<(u16, String)> + Send;

/// A listener on a port of its own.
pub(crate) struct Receiver {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Receiver {
    /// Answers all messages, on whatever connection, one after the other by `answers`.
    pub(crate) fn start(
        answers: impl FnMut(&str, &Value) -> Option<(u16, String)> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let got = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (Arc::clone(&got), Arc::new(Mutex::new(answers)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
                std::thread::spawn(move || answer_all(stream, &seen, &*answers));
            }
        });
        Self { url, got }
    }

    /// Answers events with these in turn, everything else and later ones with 200 and `{}`.
    pub(crate) fn scripted<const N: usize>(answers: [(u16, &'static str); N]) -> Self {
        let mut answers = answers.into_iter();
        Self::start(move |path, _| {
            let next = (path == "/v1/events").then(|| answers.next()).flatten();
            let (status, body) = next.unwrap_or((200, "{}"));
            Some((status, body.to_owned()))
        })
    }

    /// All messages, in the order they came.
    pub(crate) fn all(&self) -> Vec<(String, Value)> {
        self.got.lock().expect("no panic").clone()
    }

    pub(crate) fn bodies(&self, path: &str) -> Vec<Value> {
        let all = self.all().into_iter();
        all.filter(|(to, _)| to == path).map(|(_, body)| body).collect()
    }

    pub(crate) fn batches(&self) -> Vec<Value> {
        self.bodies("/v1/events")
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        let batches = self.batches();
        batches
            .iter()
            .flat_map(|batch| batch["events"].as_array().expect("a list").clone())
            .collect()
    }
}

fn answer_all(
    stream: TcpStream,
    seen: &Mutex<Vec<(String, Value)>>,
    answers: &Mutex<Answers>,
) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.to_ascii_lowercase());
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: "))?;
        let mut body = vec![0; length.trim().parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        let path = head[0].split(' ').nth(1)?.to_owned();
        assert!(head.iter().any(|line| line == "authorization: bearer secret\r\n"));
        let body: Value = serde_json::from_slice(&body).ok()?;
        let answer = answers.lock().ok()?(&path, &body);
        seen.lock().ok()?.push((path, body));
        let (status, answer) = answer?;
        let length = answer.len();
        write!(writer, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{answer}").ok()?;
    }
}
