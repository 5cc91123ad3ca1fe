//! Trace files: one request a line, JSON, plain or zstd-compressed. docs/replay.md has the fields.
//!
//! Strict: an unknown field, a number out of its range or a request out of order is an error that
//! names file and line. A trace that is read half wrong makes a wrong result that nobody notices.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Content, Message, Request, Trace};

/// Longest line.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Longest file, unpacked.
const FILE_BYTES_MAX: u64 = 8 << 30;
/// Most blocks of a request.
const BLOCKS_MAX: usize = 1 << 20;
/// Memory that unpacking may take, as a power of two: files packed with `--long=27` need it.
const WINDOW_LOG_MAX: u32 = 27;

/// A trace that cannot be read, with the place.
#[derive(Debug)]
pub struct TraceError {
    file: String,
    /// From 1; 0 where the file as a whole is meant.
    line: usize,
    problem: String,
}

impl std::fmt::Display for TraceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.problem),
            line => write!(f, "{}:{line}: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for TraceError {}

/// A line of the file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    t: f64,
    #[serde(default)]
    session: Option<Name<'a>>,
    #[serde(default)]
    turn: u32,
    /// The turn of the session that this one continues; the one before it in the file if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    think: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<Arc<str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<&'a RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<Arc<str>>,
    max_tokens: u32,
    #[serde(rename = "in")]
    prompt_tokens: u32,
    bt: u32,
    blocks: Vec<u64>,
}

/// Sessions have numbers or names.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Name<'a> {
    Number(i64),
    #[serde(borrow)]
    Text(std::borrow::Cow<'a, str>),
}

#[derive(Debug, Deserialize)]
struct Role<'a> {
    #[serde(borrow)]
    role: std::borrow::Cow<'a, str>,
}

/// Reads a file; `.zst` is unpacked.
///
/// # Errors
/// It cannot be read, or a line is not what it should be.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    let shown = path.display().to_string();
    let whole = |error: io::Error| TraceError {
        file: shown.clone(),
        line: 0,
        problem: format!("cannot be read: {error}"),
    };
    let file = File::open(path).map_err(whole)?;
    let packed = path.extension().is_some_and(|extension| extension == "zst");
    let reader: Box<dyn Read> = if packed {
        let mut unpacked = zstd::stream::read::Decoder::new(file).map_err(whole)?;
        unpacked.window_log_max(WINDOW_LOG_MAX).map_err(whole)?;
        Box::new(unpacked)
    } else {
        Box::new(file)
    };
    let mut trace = parse(&shown, BufReader::new(reader.take(FILE_BYTES_MAX)))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.trim_end_matches(".zst").trim_end_matches(".jsonl").clone_into(&mut trace.name);
    Ok(trace)
}

/// Reads the lines of a trace that `name` stands for.
///
/// # Errors
/// A line is not what it should be, or there is none.
pub fn parse(name: &str, mut reader: impl BufRead) -> Result<Trace, TraceError> {
    let mut reading = Reading::default();
    let mut line = Vec::new();
    for number in 1.. {
        let failed = |problem: String| TraceError { file: name.to_owned(), line: number, problem };
        line.clear();
        let got = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if got.map_err(|error| failed(error.to_string()))? == 0 {
            break;
        }
        if line.len() as u64 == LINE_BYTES_MAX {
            return Err(failed(format!("the line is longer than {LINE_BYTES_MAX} bytes")));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        reading.take_in(&line).map_err(failed)?;
    }
    if reading.requests.is_empty() {
        let problem = "there is no request in it".to_owned();
        return Err(TraceError { file: name.to_owned(), line: 0, problem });
    }
    Ok(Trace { name: name.to_owned(), requests: reading.requests })
}

#[derive(Default)]
struct Reading {
    requests: Vec<Request>,
    /// Where each turn of each session is.
    turns: HashMap<(Arc<str>, u32), usize>,
    /// The turn of each session that was read last.
    last: HashMap<Arc<str>, u32>,
}

impl Reading {
    fn take_in(&mut self, line: &[u8]) -> Result<(), String> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
            // serde_json counts from the line it was given.
            error.to_string().replace(" at line 1 column ", ", at column ")
        })?;
        let before = self.requests.last().map_or(0.0, |request| request.t);
        if !line.t.is_finite() || line.t < before {
            return Err(format!("t {} is before {before} or no time: sort by t", line.t));
        }
        if line.think.is_some_and(|think| !think.is_finite() || think < 0.0) {
            return Err("think is no number of seconds".to_owned());
        }
        if line.max_tokens == 0 || line.prompt_tokens == 0 || line.bt == 0 {
            return Err("max_tokens, in and bt must be at least 1".to_owned());
        }
        if line.blocks.is_empty() || line.blocks.len() > BLOCKS_MAX {
            return Err(format!("blocks must have 1 to {BLOCKS_MAX} ids"));
        }
        let content = match (line.messages, line.prompt) {
            (Some(_), Some(_)) => return Err("both messages and prompt".to_owned()),
            (None, None) => Content::Shape,
            (None, Some(prompt)) => Content::Prompt(prompt),
            (Some(messages), None) => Content::Messages(read_messages(&messages)?),
        };
        let session: Option<Arc<str>> = line.session.map(|name| match name {
            Name::Number(number) => number.to_string().into(),
            Name::Text(text) => text.into(),
        });
        let parent = match &session {
            None if line.parent.is_some() => return Err("parent without session".to_owned()),
            None => None,
            Some(session) => self.place(session, line.turn, line.parent)?,
        };
        self.requests.push(Request {
            t: line.t,
            session,
            turn: line.turn,
            parent,
            think: line.think,
            max_tokens: line.max_tokens,
            tenant: line.tenant,
            prompt_tokens: line.prompt_tokens,
            block_tokens: line.bt,
            blocks: line.blocks.into(),
            content,
        });
        Ok(())
    }

    /// Notes a turn and gives the place of the one it continues.
    fn place(
        &mut self,
        session: &Arc<str>,
        turn: u32,
        parent: Option<u32>,
    ) -> Result<Option<usize>, String> {
        let last = self.last.insert(session.clone(), turn);
        if last.is_some_and(|last| last >= turn) {
            return Err(format!("turn {turn} of session {session} after a later one"));
        }
        let continued = match parent.or(last) {
            None => None,
            Some(before) => Some(
                *self
                    .turns
                    .get(&(session.clone(), before))
                    .ok_or_else(|| format!("no turn {before} of session {session} before this"))?,
            ),
        };
        self.turns.insert((session.clone(), turn), self.requests.len());
        Ok(continued)
    }
}

fn read_messages(messages: &[&RawValue]) -> Result<Vec<Message>, String> {
    let read = |raw: &&RawValue| {
        let role: Role<'_> = serde_json::from_str(raw.get())
            .map_err(|error| format!("a message without a role: {error}"))?;
        Ok(Message { role: role.role.into(), json: raw.get().into() })
    };
    if messages.is_empty() {
        return Err("messages is empty".to_owned());
    }
    messages.iter().map(read).collect()
}

impl Trace {
    /// The file that `read` reads, one line a request.
    ///
    /// # Errors
    /// A message is no JSON, which none that was read or drawn is.
    pub fn to_jsonl(&self) -> Result<String, serde_json::Error> {
        let mut text = String::new();
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (at, request) in self.requests.iter().enumerate() {
            let before = request.session.as_deref().and_then(|name| last.insert(name, at));
            let continued = request.parent.filter(|parent| Some(*parent) != before);
            let messages = match &request.content {
                Content::Messages(messages) => Some(
                    messages
                        .iter()
                        .map(|message| serde_json::from_str(&message.json))
                        .collect::<Result<_, _>>()?,
                ),
                _ => None,
            };
            let prompt = match &request.content {
                Content::Prompt(prompt) => Some(prompt.clone()),
                _ => None,
            };
            let line = Line {
                t: request.t,
                session: request.session.as_deref().map(|name| Name::Text(name.into())),
                turn: request.turn,
                parent: continued.map(|parent| self.requests[parent].turn),
                think: request.think,
                tenant: request.tenant.clone(),
                messages,
                prompt,
                max_tokens: request.max_tokens,
                prompt_tokens: request.prompt_tokens,
                bt: request.block_tokens,
                blocks: request.blocks.to_vec(),
            };
            text += &serde_json::to_string(&line)?;
            text.push('\n');
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str =
        r#"{"t":0.5,"session":7,"turn":0,"max_tokens":5,"in":70,"bt":64,"blocks":[1,2]}"#;

    fn error_of(text: &str) -> String {
        parse("f.jsonl", text.as_bytes()).expect_err("bad").to_string()
    }

    #[test]
    fn reads_every_field() {
        let text = r#"{"t":1,"session":"a","turn":0,"think":0,"tenant":"x","messages":[{"role":"user","content":"é"}],"max_tokens":5,"in":7,"blocks":[0],"bt":64}
{"t":2,"session":"a","turn":1,"think":0.25,"prompt":"say","max_tokens":5,"in":7,"blocks":[0],"bt":64}

{"t":2,"session":null,"max_tokens":1,"in":1,"blocks":[3],"bt":1}
{"t":3,"session":"a","turn":2,"parent":0,"max_tokens":5,"in":7,"blocks":[0],"bt":64}
"#;
        let trace = parse("f", text.as_bytes()).expect("it is right");
        let [first, second, third, fourth] = &trace.requests[..] else { panic!("four") };
        assert_eq!(first.tenant.as_deref(), Some("x"));
        let Content::Messages(messages) = &first.content else { panic!("messages") };
        assert_eq!((&*messages[0].role, messages[0].text().as_deref()), ("user", Some("é")));
        assert_eq!((second.parent, second.think), (Some(0), Some(0.25)));
        assert_eq!(second.content, Content::Prompt("say".into()));
        assert_eq!((third.parent, &third.session, &third.content), (None, &None, &Content::Shape));
        assert_eq!(fourth.parent, Some(0), "a branch");
        let again = parse("f", trace.to_jsonl().expect("JSON").as_bytes()).expect("it is right");
        assert_eq!(again, trace);
    }

    #[test]
    fn an_error_names_file_line_and_problem() {
        let bad =
            |from: &str, to: &str| error_of(&format!("{GOOD}\n\n{}\n", GOOD.replace(from, to)));
        assert!(bad("0.5", "0.4").starts_with("f.jsonl:3: t 0.4 is before 0.5"));
        assert!(bad("\"bt\":64", "\"bt\":0").contains("at least 1"));
        assert!(bad("[1,2]", "[]").contains("blocks must have 1"));
        assert!(bad("\"turn\":0", "\"turns\":0").contains("unknown field `turns`"));
        assert!(bad("\"turn\":0", "\"turn\":0").contains("turn 0 of session 7 after"));
        assert!(bad("\"turn\":0", "\"turn\":3,\"parent\":2").contains("no turn 2 of session 7"));
        assert!(bad("\"bt\"", "\"think\":-1,\"turn\":1,\"bt\"").contains("duplicate field"));
        assert!(bad("\"turn\":0", "\"turn\":1,\"think\":-1").contains("no number of seconds"));
        assert!(bad("\"turn\":0", "\"turn\":1,\"prompt\":\"\",\"messages\":[]").contains("both"));
        assert!(bad("{", "").contains("f.jsonl:3:"));
        assert_eq!(error_of("\n"), "f.jsonl: there is no request in it");
        let missing = read(Path::new("/nowhere/f.jsonl")).expect_err("none").to_string();
        assert!(missing.starts_with("/nowhere/f.jsonl: cannot be read"), "{missing}");
    }

    #[test]
    fn reads_packed_files_and_refuses_cut_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("small.jsonl.zst");
        let packed = zstd::encode_all(super::super::BUNDLED.as_bytes(), 3).expect("packs");
        std::fs::write(&path, &packed).expect("writes");
        assert_eq!(read(&path).expect("reads"), Trace::bundled());
        std::fs::write(&path, &packed[..packed.len() / 2]).expect("writes");
        assert!(read(&path).is_err());
        std::fs::write(&path, "no zstd").expect("writes");
        assert!(read(&path).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(parse("f", &bytes[..]).is_err());
        }

        #[test]
        fn a_damaged_line_never_panics(at in 0_usize..GOOD.len(), byte: u8) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(trace) = parse("f", &bytes[..]) {
                prop_assert!(trace.requests.iter().all(|request| request.t >= 0.0));
            }
        }
    }
}
