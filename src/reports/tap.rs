//! Reports told on to the process that takes over from this one: reporters keep their connection to
//! us for as long as we let them.

use arc_swap::ArcSwapOption;
use crossbeam::channel::{Receiver, Sender, bounded};

/// Reports that may wait to be told on. One that finds no room is a gap, and heals as gaps do.
const WAITING_MAX: usize = 4096;

/// A report as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// Where it was sent.
    pub path: String,
    /// What it said.
    pub body: Vec<u8>,
}

/// Closed but during a hand-over; then it costs a copy of each report.
#[derive(Debug, Default)]
pub struct Tap(ArcSwapOption<Sender<Forwarded>>);

impl Tap {
    /// Tells every report that is taken from now on.
    pub fn open(&self) -> Receiver<Forwarded> {
        let (told, reports) = bounded(WAITING_MAX);
        self.0.store(Some(told.into()));
        reports
    }

    /// Tells no more.
    pub fn close(&self) {
        self.0.store(None);
    }

    /// A report was taken.
    pub(super) fn tell(&self, path: &str, body: &[u8]) {
        if let Some(told) = &*self.0.load() {
            let report = Forwarded { path: path.to_owned(), body: body.to_vec() };
            let _ = told.try_send(report);
        }
    }
}
