//! A name server on loopback, UDP and TCP, that says what the test tells it.

use std::{collections::HashMap, net::SocketAddr, str::FromStr, sync::Arc};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SRV},
    },
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
    time::Instant,
};

use super::ports::free_port;

/// What it says of a name and type.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// These, with a TTL.
    Records(Vec<RData>, u32),
    /// No such name.
    NxDomain,
    /// The name has no such record.
    NoRecords,
    /// It cannot say.
    ServFail,
    /// Nothing.
    Silence,
    /// No DNS.
    Garbage,
}

/// Addresses, v4 or v6, with a TTL.
pub(crate) fn ips(list: &[&str], ttl: u32) -> Says {
    let record = |text: &&str| match text.parse().expect("an address") {
        std::net::IpAddr::V4(v4) => RData::A(A(v4)),
        std::net::IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Says::Records(list.iter().map(record).collect(), ttl)
}

/// Services as (priority, weight, port, target), with a TTL.
pub(crate) fn services(list: &[(u16, u16, u16, &str)], ttl: u32) -> Says {
    let record = |&(priority, weight, port, target): &(u16, u16, u16, &str)| {
        RData::SRV(SRV::new(priority, weight, port, name(target)))
    };
    Says::Records(list.iter().map(record).collect(), ttl)
}

/// Another name, to be asked for.
pub(crate) fn alias(target: &str, ttl: u32) -> Says {
    Says::Records(vec![RData::CNAME(CNAME(name(target)))], ttl)
}

fn name(text: &str) -> Name {
    let mut name = Name::from_str(text).expect("a name");
    name.set_fqdn(true);
    name
}

#[derive(Debug, Default)]
struct State {
    says: HashMap<(String, RecordType), Says>,
    asked: Vec<(String, RecordType, Instant)>,
    /// Answers over UDP are cut to nothing.
    truncates: bool,
    over_tcp: usize,
}

/// A running name server; gone when dropped.
#[derive(Debug)]
pub(crate) struct NameServer {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl NameServer {
    /// One that knows no name.
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], free_port()))).await
    }

    /// As `start`, at this address.
    pub(crate) async fn start_at(addr: SocketAddr) -> Self {
        let udp = UdpSocket::bind(addr).await.expect("a UDP port");
        let tcp = TcpListener::bind(addr).await.expect("a TCP port");
        let state: Arc<Mutex<State>> = Arc::default();
        let tasks = vec![
            tokio::spawn(serve_udp(udp, state.clone())),
            tokio::spawn(serve_tcp(tcp, state.clone())),
        ];
        Self { addr, state, tasks }
    }

    /// Where it listens, as the configuration wants it.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Says this of A records from now on.
    pub(crate) fn a(&self, name: &str, says: Says) {
        self.says(name, RecordType::A, says);
    }

    /// Says this of AAAA records from now on.
    pub(crate) fn aaaa(&self, name: &str, says: Says) {
        self.says(name, RecordType::AAAA, says);
    }

    /// Says this of SRV records from now on.
    pub(crate) fn srv(&self, name: &str, says: Says) {
        self.says(name, RecordType::SRV, says);
    }

    fn says(&self, name: &str, kind: RecordType, says: Says) {
        self.state.lock().says.insert((name.to_owned(), kind), says);
    }

    /// Cuts its answers over UDP from now on.
    pub(crate) fn truncates(&self) {
        self.state.lock().truncates = true;
    }

    /// Answers given over TCP.
    pub(crate) fn over_tcp(&self) -> usize {
        self.state.lock().over_tcp
    }

    /// When it was asked for A records of a name.
    pub(crate) fn asked_a(&self, name: &str) -> Vec<Instant> {
        let state = self.state.lock();
        let fits = |(asked, kind, _): &&(String, RecordType, Instant)| {
            asked == name && *kind == RecordType::A
        };
        state.asked.iter().filter(fits).map(|(_, _, at)| *at).collect()
    }
}

async fn serve_udp(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut packet = [0; 4096];
    loop {
        let (size, from) = socket.recv_from(&mut packet).await.expect("a packet");
        if let Some(answer) = answer(&packet[..size], &state, false) {
            socket.send_to(&answer, from).await.expect("sends");
        }
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let state = state.clone();
        tokio::spawn(async move {
            // Until the client leaves.
            while answer_tcp(&mut stream, &state).await.is_ok() {}
        });
    }
}

async fn answer_tcp(stream: &mut TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let size = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(size)];
    stream.read_exact(&mut packet).await?;
    if let Some(answer) = answer(&packet, state, true) {
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend(answer);
        stream.write_all(&framed).await?;
    }
    Ok(())
}

fn answer(packet: &[u8], state: &Mutex<State>, tcp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(packet).expect("a question");
    let asked = query.queries.first().expect("a question").clone();
    let mut state = state.lock();
    let text = asked.name().to_lowercase().to_utf8().trim_end_matches('.').to_owned();
    state.asked.push((text.clone(), asked.query_type(), Instant::now()));
    state.over_tcp += usize::from(tcp);
    let says = state.says.get(&(text, asked.query_type())).cloned().unwrap_or(Says::NxDomain);
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    answer.add_query(asked.clone());
    match says {
        Says::Records(records, ttl) => {
            let record = |data| Record::from_rdata(asked.name().clone(), ttl, data);
            if state.truncates && !tcp {
                answer.metadata.truncation = true;
            } else {
                answer.add_answers(records.into_iter().map(record));
            }
        }
        Says::NxDomain => answer.metadata.response_code = ResponseCode::NXDomain,
        Says::NoRecords => {}
        Says::ServFail => answer.metadata.response_code = ResponseCode::ServFail,
        Says::Silence => return None,
        Says::Garbage => return Some(b"\x00\x01no DNS at all".to_vec()),
    }
    Some(answer.to_vec().expect("encodes"))
}
