//! Asks name servers, by hickory-resolver.
//!
//! Only the protocol is its business: what an answer means for the fleet is decided in `question.rs`.
//! Nothing is cached, as we ask when the TTL has passed. Names are fully qualified: with the search
//! list of resolv.conf a time-out for `vllm.internal` and no such name as `vllm.internal.example`
//! would together read as "no such name".

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{
        ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ServerOrderingStrategy,
    },
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    names::{Answer, Ask, Service},
    question::Reply,
};

/// A question and its repetitions, at all name servers.
const LOOKUP_MAX: Duration = Duration::from_secs(6);
/// One try, also where resolv.conf allows more: nobody waits for us, and we ask again soon.
const TRY_MAX: Duration = Duration::from_secs(2);
/// Questions under way, of all names together.
const LOOKUPS_AT_ONCE: usize = 16;

/// Somebody who can be asked.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// Asks; every failure is a reply too.
    async fn resolve(&self, ask: &Ask) -> Answer;
}

/// Asks the name servers of the configuration, or those of the system.
pub struct DnsResolver {
    nameservers: Option<Vec<SocketAddr>>,
    /// Made at the first question, and again after a failure: resolv.conf may be another by then.
    current: ArcSwapOption<TokioResolver>,
    slots: Semaphore,
}

impl DnsResolver {
    /// Asks these; `None` = those of /etc/resolv.conf.
    pub fn new(nameservers: Option<Vec<SocketAddr>>) -> Self {
        let slots = Semaphore::new(LOOKUPS_AT_ONCE);
        Self { nameservers, current: ArcSwapOption::empty(), slots }
    }

    fn resolver(&self) -> Result<Arc<TokioResolver>, String> {
        if let Some(current) = self.current.load_full() {
            return Ok(current);
        }
        let provider = TokioRuntimeProvider::default();
        let mut builder = match &self.nameservers {
            None => Resolver::builder(provider).map_err(|error| format!("resolv.conf: {error}"))?,
            Some(addrs) => {
                let servers = addrs.iter().map(|addr| name_server(*addr)).collect();
                let config = ResolverConfig::from_parts(None, Vec::new(), servers);
                Resolver::builder_with_config(config, provider)
            }
        };
        let options = builder.options_mut();
        options.timeout = options.timeout.min(TRY_MAX);
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        // The TTL of an alias counts too.
        options.preserve_intermediates = true;
        let made = Arc::new(builder.build().map_err(|error| error.to_string())?);
        self.current.store(Some(made.clone()));
        Ok(made)
    }

    async fn look_up(&self, ask: &Ask) -> Result<Lookup, Lost> {
        let failed = |why: String| Lost::Failed(why);
        let _slot = self.slots.acquire().await.map_err(|error| failed(error.to_string()))?;
        let mut name = Name::from_utf8(ask.name()).map_err(|error| failed(error.to_string()))?;
        name.set_fqdn(true);
        let kind = match ask {
            Ask::A(_) => RecordType::A,
            Ask::Aaaa(_) => RecordType::AAAA,
            Ask::Srv(_) => RecordType::SRV,
        };
        let resolver = self.resolver().map_err(failed)?;
        // A bound of nothing is kept by and by only.
        resolver.clear_cache();
        match timeout(LOOKUP_MAX, resolver.lookup(name, kind)).await {
            Err(_) => Err(failed("no answer in time".to_owned())),
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(u64::from(ttl)));
                Err(Lost::Empty(ttl))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Ok(Ok(lookup)) => Ok(lookup),
        }
    }
}

/// Why there is no record.
enum Lost {
    Empty(Option<Duration>),
    Failed(String),
}

impl Lost {
    fn reply<T>(self) -> Reply<T> {
        match self {
            Lost::Empty(ttl) => Reply::Empty(ttl),
            Lost::Failed(why) => Reply::Failed(why),
        }
    }
}

#[async_trait]
impl Resolve for DnsResolver {
    async fn resolve(&self, ask: &Ask) -> Answer {
        let result = self.look_up(ask).await;
        if matches!(result, Err(Lost::Failed(_))) && self.nameservers.is_none() {
            self.current.store(None);
        }
        match ask {
            Ask::Srv(_) => Answer::Services(result.map_or_else(Lost::reply, |lookup| {
                Reply::Records(records(&lookup, service), ttl(&lookup))
            })),
            Ask::A(_) | Ask::Aaaa(_) => {
                Answer::Addresses(result.map_or_else(Lost::reply, |lookup| {
                    Reply::Records(records(&lookup, RData::ip_addr), ttl(&lookup))
                }))
            }
        }
    }
}

fn name_server(addr: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = addr.port();
    }
    NameServerConfig::new(addr.ip(), true, connections)
}

fn records<T>(lookup: &Lookup, read: impl Fn(&RData) -> Option<T>) -> Vec<T> {
    lookup.answers().iter().filter_map(|record| read(&record.data)).collect()
}

/// The shortest of all, aliases included.
fn ttl(lookup: &Lookup) -> Duration {
    let least = lookup.answers().iter().map(|record| record.ttl).min();
    Duration::from_secs(u64::from(least.unwrap_or(0)))
}

fn service(data: &RData) -> Option<Service> {
    let RData::SRV(srv) = data else { return None };
    // The root as target says that there is no such service.
    if srv.target.is_root() || srv.port == 0 {
        return None;
    }
    let target = srv.target.to_lowercase().to_utf8();
    Some(Service {
        priority: srv.priority,
        target: target.trim_end_matches('.').into(),
        port: srv.port,
        weight: srv.weight,
    })
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::SRV;

    use super::*;

    fn srv(port: u16, target: &str) -> Option<Service> {
        let target = Name::from_ascii(target).expect("a name");
        service(&RData::SRV(SRV::new(1, 2, port, target)))
    }

    #[test]
    fn targets_are_in_lower_case_without_the_final_dot() {
        let expected = Service { priority: 1, weight: 2, port: 80, target: "gpu1.lan".into() };
        assert_eq!(srv(80, "GPU1.lan."), Some(expected));
    }

    #[test]
    fn no_service_and_no_port_are_no_records() {
        assert_eq!((srv(80, "."), srv(0, "gpu1.lan.")), (None, None));
    }
}
