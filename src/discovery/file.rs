//! Follows the file that lists workers.
//!
//! It is looked at, not watched by inotify: that tells nothing of NFS, of a folder renamed above it or
//! of the symlinks Kubernetes swaps, and a small file read once a second costs nothing. Its content
//! counts, not its times, which may not change with it.

use std::{
    fs,
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{Sink, Source, dns::TELL_AGE_EVERY};
use crate::{
    clock,
    config::{FileSource, WorkerConfig},
    telemetry::discovery::{LookupResult, SourceMetrics},
};

/// Largest file read.
const BYTES_MAX: u64 = 4 << 20;
/// Changed content is taken when it is the same for so long: somebody may be writing.
const SETTLES_IN: Duration = Duration::from_millis(100);

/// What to do about what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It is what the fleet has.
    Rest,
    /// It is new: look again soon.
    LookAgain,
    /// It is new and nobody seems to be writing: read it.
    Read,
}

/// Decides which content is read. Contents are told apart by their hash.
#[derive(Debug, Default)]
struct Contents {
    taken: Option<u64>,
    last_seen: Option<u64>,
}

impl Contents {
    fn on_look(&mut self, content: u64) -> Next {
        let before = self.last_seen.replace(content);
        if self.taken == Some(content) {
            Next::Rest
        } else if before == Some(content) {
            Next::Read
        } else {
            Next::LookAgain
        }
    }

    fn on_missing(&mut self) {
        self.last_seen = None;
    }

    fn on_taken(&mut self, content: u64) {
        self.taken = Some(content);
    }
}

/// The file's task.
pub(super) struct FileWatch {
    source: Arc<FileSource>,
    contents: Contents,
    sink: Arc<dyn Sink>,
    metrics: SourceMetrics,
    good_at: Option<Instant>,
    problem: Option<String>,
}

impl FileWatch {
    pub(super) fn new(source: FileSource, sink: Arc<dyn Sink>) -> Self {
        Self {
            source: Arc::new(source),
            contents: Contents::default(),
            sink,
            metrics: SourceMetrics::of(&Source::File.label()),
            good_at: None,
            problem: None,
        }
    }

    /// Looks for ever.
    pub(super) async fn run(mut self) {
        loop {
            match self.look().await {
                Next::LookAgain => sleep(SETTLES_IN).await,
                Next::Rest | Next::Read => {
                    let tells = self.tell_ages();
                    let _ = timeout(self.source.interval, tells).await;
                }
            }
        }
    }

    async fn tell_ages(&self) {
        loop {
            self.metrics.tell_age(self.good_at, clock::now());
            sleep(TELL_AGE_EVERY).await;
        }
    }

    async fn look(&mut self) -> Next {
        let source = self.source.clone();
        let read = spawn_blocking(move || read(&source.path)).await;
        let text = match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(text) => text,
            Err(why) => {
                self.contents.on_missing();
                self.fails(LookupResult::Failed, why);
                return Next::Rest;
            }
        };
        let content = xxh3_64(text.as_bytes());
        let next = self.contents.on_look(content);
        match next {
            Next::LookAgain => {}
            Next::Rest => self.is_good(),
            Next::Read => {
                let source = self.source.clone();
                let parsed = spawn_blocking(move || source.parse(&text)).await;
                match parsed {
                    Ok(Ok(workers)) => {
                        self.contents.on_taken(content);
                        self.publish(workers);
                        self.is_good();
                    }
                    Ok(Err(error)) => self.fails(LookupResult::Malformed, error.to_string()),
                    Err(error) => self.fails(LookupResult::Malformed, error.to_string()),
                }
            }
        }
        next
    }

    fn publish(&self, workers: Vec<WorkerConfig>) {
        self.metrics.published(workers.len());
        self.sink.set_workers(&Source::File, workers);
    }

    fn is_good(&mut self) {
        self.metrics.looked(LookupResult::Answered);
        self.good_at = Some(clock::now());
        if self.problem.take().is_some() {
            self.metrics.problem("file", &self.source.path.display().to_string(), None);
        }
    }

    fn fails(&mut self, result: LookupResult, why: String) {
        self.metrics.looked(result);
        if self.problem.as_ref() != Some(&why) {
            self.metrics.problem("file", &self.source.path.display().to_string(), Some(&why));
            self.problem = Some(why);
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    // To open a pipe would wait for somebody to write into it.
    let meta = fs::metadata(path).map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("not a file".to_owned());
    }
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("larger than {BYTES_MAX} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_content_is_read_when_it_was_seen_twice() {
        let mut contents = Contents::default();
        assert_eq!(contents.on_look(1), Next::LookAgain);
        assert_eq!(contents.on_look(2), Next::LookAgain, "somebody is writing");
        assert_eq!(contents.on_look(2), Next::Read);
        assert_eq!(contents.on_look(2), Next::Read, "it could not be used");
        contents.on_taken(2);
        assert_eq!(contents.on_look(2), Next::Rest);
        // Half a file on the way from one version to the other.
        assert_eq!(contents.on_look(3), Next::LookAgain);
        assert_eq!(contents.on_look(2), Next::Rest);
        assert_eq!(contents.on_look(3), Next::LookAgain);
    }

    #[test]
    fn a_file_that_was_gone_is_seen_anew() {
        let mut contents = Contents::default();
        contents.on_look(1);
        contents.on_missing();
        assert_eq!(contents.on_look(1), Next::LookAgain);
        assert_eq!(contents.on_look(1), Next::Read);
    }

    #[test]
    fn what_is_no_small_text_is_refused() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("workers.yaml");
        assert!(read(&path).expect_err("missing").contains("No such file"));
        assert_eq!(read(folder.path()).expect_err("a folder"), "not a file");
        fs::write(&path, [0xff, 0xfe]).expect("writes");
        assert!(read(&path).expect_err("no text").contains("UTF-8"));
        let file = fs::File::create(&path).expect("creates");
        file.set_len(BYTES_MAX + 1).expect("grows");
        assert!(read(&path).expect_err("too large").contains("larger than"));
        fs::write(&path, "[]").expect("writes");
        assert_eq!(read(&path).as_deref(), Ok("[]"));
    }
}
