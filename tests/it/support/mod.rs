//! The harness: `lb().worker(echo()).worker(stalled()).config("..").start().await` is a scene.

mod ask;
mod certs;
mod client;
mod delivery;
mod dns;
mod engine;
mod lb;
mod metrics;
mod nats;
mod notify;
mod ports;
mod raw;
mod reporter;
mod wait;
mod worker;
pub(crate) mod zmq_engine;

pub(crate) use ask::{Ask, chat_body_of, noise, sha256_hex};
pub(crate) use certs::{Authority, Identity};
pub(crate) use client::{Answer, Conn, Open, Proto, error_of};
pub(crate) use delivery::{Delivered, How, deliver};
pub(crate) use dns::{NameServer, Says, alias, ips, services};
pub(crate) use engine::{
    ChatVector, block_stored, chat_vectors, confirmed, drops, holds, ids_prompt, kv_batch, matched,
    presumed, stored_ids, tokenizer, tokens, trust_is,
};
pub(crate) use lb::{Lb, Scene, lb};
pub(crate) use metrics::Metrics;
pub(crate) use nats::Nats;
pub(crate) use notify::{Notification, Unit, never};
pub(crate) use ports::free_port;
pub(crate) use raw::{Raw, RawAnswer};
pub(crate) use reporter::{Reporter, stored, stored_list};
pub(crate) use wait::{DEADLINE, eventually, within};
pub(crate) use worker::{
    Act, Seen, Worker, WorkerSpec, answering, cutting, dying, echo, holding, stalled, streaming,
    streaming_gated,
};
