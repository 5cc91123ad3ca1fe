//! A bar for people, a line a run for files.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use crate::say;

/// How far a replay is.
pub struct Progress {
    bar: Option<ProgressBar>,
    runs: usize,
    begun: usize,
}

impl Progress {
    /// For so many requests in so many runs.
    pub fn start(requests: usize, runs: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let template = "{bar:24} {pos}/{len} requests, {elapsed} gone, {eta} left: {msg}";
            let style = ProgressStyle::with_template(template);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(requests as u64).with_style(style)
        });
        Self { bar, runs, begun: 0 }
    }

    /// A run begins.
    pub fn next(&mut self, name: &str) {
        self.begun += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("[{}/{}] {name}", self.begun, self.runs));
        }
    }

    /// A request ended.
    pub fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// A run ended, with this to say.
    pub fn line(&self, text: &str) {
        let line = format!("[{}/{}] {text}", self.begun, self.runs);
        match &self.bar {
            Some(bar) => bar.suspend(|| say(&line)),
            None => say(&line),
        }
    }

    /// All is done.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
