//! Discovery: workers that join and leave without an edit of the configuration.
//!
//! A source (a file, a DNS name) names all its workers at a time; what that means for the fleet is
//! the [`Sink`]'s business. `question.rs` and `names.rs` decide and are pure; `file.rs` and `dns.rs`
//! are one task a source around them. A source that fails leaves its workers where they are: health
//! checks know better than a name server whether an engine is up.

mod dns;
mod file;
pub mod names;
pub mod question;
pub mod resolver;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use async_trait::async_trait;
use pingora::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::{sync::watch, task::JoinHandle};

use self::{dns::DnsWatch, file::FileWatch, question::Pace, resolver::DnsResolver};
use crate::{
    config::{DiscoveryConfig, DnsSource, FileSource, WorkerConfig},
    telemetry::discovery::SourceMetrics,
};

/// Where workers come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The watched file.
    File,
    /// A DNS name, by `DnsSource::key`.
    Dns(Arc<str>),
}

impl Source {
    /// Its name in metrics and logs.
    pub fn label(&self) -> String {
        match self {
            Source::File => "file".to_owned(),
            Source::Dns(key) => format!("dns:{key}"),
        }
    }
}

/// Who is told.
pub trait Sink: Send + Sync + 'static {
    /// The workers of `source` are these from now on, and no others. Comes again only when they
    /// have changed.
    fn set_workers(&self, source: &Source, workers: Vec<WorkerConfig>);

    /// Whose workers it has: told by a task before, or handed over by the process before us.
    fn sources(&self) -> BTreeSet<Source>;
}

/// What the tasks follow; `None` = nothing. May be swapped at any time.
pub type SharedDiscovery = watch::Receiver<Option<Arc<DiscoveryConfig>>>;

/// The service.
pub struct Discovery {
    config: SharedDiscovery,
    sink: Arc<dyn Sink>,
}

impl Discovery {
    /// Follows the sources of `config`, also when it is swapped.
    pub fn new(config: SharedDiscovery, sink: Arc<dyn Sink>) -> Self {
        Self { config, sink }
    }
}

#[async_trait]
impl BackgroundService for Discovery {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut config = self.config.clone();
        let mut tasks = Tasks::new(self.sink.clone());
        loop {
            let now = config.borrow_and_update().clone();
            tasks.follow(now.as_deref());
            tokio::select! {
                Ok(()) = config.changed() => {}
                _ = shutdown.changed() => return,
            }
        }
    }
}

/// All that a task depends on: when it changes, the task starts anew.
#[derive(Debug, Clone, PartialEq)]
enum Job {
    File(FileSource),
    Dns(Box<DnsSource>, Pace, Option<Vec<SocketAddr>>),
}

/// The running tasks; stopped when dropped.
struct Tasks {
    sink: Arc<dyn Sink>,
    running: BTreeMap<Source, (Job, JoinHandle<()>)>,
    resolver: Arc<DnsResolver>,
    nameservers: Option<Vec<SocketAddr>>,
}

impl Tasks {
    fn new(sink: Arc<dyn Sink>) -> Self {
        let resolver = Arc::new(DnsResolver::new(None));
        Self { sink, running: BTreeMap::new(), resolver, nameservers: None }
    }

    fn follow(&mut self, config: Option<&DiscoveryConfig>) {
        let mut jobs = config.map(jobs).unwrap_or_default();
        if let Some(config) = config.filter(|config| config.nameservers != self.nameservers) {
            self.nameservers.clone_from(&config.nameservers);
            self.resolver = Arc::new(DnsResolver::new(config.nameservers.clone()));
        }
        let served = self.sink.sources();
        let known: BTreeSet<_> = self.running.keys().chain(&served).cloned().collect();
        for source in known.into_iter().filter(|source| !jobs.contains_key(source)) {
            if let Some((_, task)) = self.running.remove(&source) {
                task.abort();
            }
            self.sink.set_workers(&source, Vec::new());
            SourceMetrics::forget(&source.label());
        }
        jobs.retain(|source, job| self.running.get(source).is_none_or(|(same, _)| same != job));
        for (source, job) in jobs {
            if let Some((_, task)) = self.running.remove(&source) {
                task.abort();
            }
            let task = self.spawn(job.clone(), served.contains(&source));
            self.running.insert(source, (job, task));
        }
    }

    fn spawn(&self, job: Job, replaces: bool) -> JoinHandle<()> {
        let sink = self.sink.clone();
        match job {
            Job::File(source) => tokio::spawn(FileWatch::new(source, sink).run()),
            Job::Dns(source, pace, _) => {
                let watch = DnsWatch::new(*source, pace, sink, replaces);
                tokio::spawn(watch.run(self.resolver.clone()))
            }
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

fn jobs(config: &DiscoveryConfig) -> BTreeMap<Source, Job> {
    let pace = Pace {
        interval_min: config.interval_min,
        interval_max: config.interval_max,
        empty_grace: config.empty_grace,
    };
    let file = config.file.iter().map(|file| (Source::File, Job::File(file.clone())));
    let dns = config.dns.iter().map(|dns| {
        let job = Job::Dns(Box::new(dns.clone()), pace, config.nameservers.clone());
        (Source::Dns(dns.key.clone()), job)
    });
    file.chain(dns).collect()
}
