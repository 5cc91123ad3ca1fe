//! A message between routers: values <-> bytes.
//!
//! ```text
//! "wrp" version:1 | fingerprint:8 instance:8 number:8 sent_ms:8 | name | entries.. | code:32
//! name, worker   = length:1 bytes
//! entry Presumed = 1 flags:1 worker count:4 block:8 ..
//!       TakenBack= 2 flags:1 worker keep:4 count:4 block:8 ..
//!       Loads    = 3 (Changed = 4) count:2 (worker requests:4 decodes:4 queued_tokens:8) ..
//! ```
//!
//! Numbers are little endian. Blocks are most of it, and random: there is nothing to compress. A
//! self-describing format was turned down, as it would double the bytes and need the same checks.

use std::sync::Arc;

use super::keys::{Keys, MAC_BYTES};
use crate::{
    fleet::{BLOCKS_MAX, Domain, Presumption, Said},
    routing::{Load, WorkerId, block::BlockHash},
};

const MAGIC: [u8; 3] = *b"wrp";
const VERSION: u8 = 1;
/// Magic and version, and the four numbers that follow.
const HEAD_BYTES: usize = 4 + 4 * 8;
/// Longest message. Brokers take 1 MiB unless told otherwise.
pub(super) const FRAME_BYTES_MAX: usize = 768 << 10;
/// Workers whose load is told, at most.
pub(super) const LOADS_MAX: usize = 4096;
/// Longest name of a router.
pub(super) const NAME_BYTES_MAX: usize = 64;

const PRESUMED: u8 = 1;
const TAKEN_BACK: u8 = 2;
const LOADS: u8 = 3;
const CHANGED: u8 = 4;
const CONFIRMS: u8 = 1;
const TOKENS: u8 = 2;
const TENANT: u8 = 4;

/// Something one router tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// What it presumes.
    Said(Said),
    /// All its load; workers not named have none.
    Loads(Vec<(WorkerId, Load)>),
    /// Its load of these workers; of the others it is what was told before.
    Changed(Vec<(WorkerId, Load)>),
}

/// Who sent a message, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// This life of the sender; random.
    pub(super) instance: u64,
    /// Grows with every message of the instance.
    pub(super) number: u64,
    /// By the sender's clock, milliseconds of Unix time.
    pub(super) sent_ms: u64,
    /// The sender's name, for people.
    pub(super) name: String,
}

/// A message that was taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its sender.
    pub(super) head: Head,
    /// In the order in which they were told.
    pub(super) entries: Vec<Entry>,
}

/// Why a message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Refused {
    /// No message of ours.
    Garbage,
    /// Of another version of this protocol.
    Version(u8),
    /// Of a router with another secret or other blocks; with its fingerprint.
    Configuration(u64),
    /// Its code is wrong: made without the secret, or damaged.
    Forged,
    /// Sent too long ago, or in the future.
    Stale,
    /// Seen before.
    Repeated,
    /// From one router too many.
    Full,
}

impl Refused {
    /// Its metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::Version(_) => "version",
            Self::Configuration(_) => "configuration",
            Self::Forged => "forged",
            Self::Stale => "stale",
            Self::Repeated => "repeated",
            Self::Full => "full",
        }
    }
}

/// Collects entries for one message.
#[derive(Debug)]
pub(super) struct Batch {
    keys: Keys,
    instance: u64,
    name: String,
    numbered: u64,
    entries: Vec<u8>,
}

impl Batch {
    /// Of the router `name` in this life of it. Only the first `NAME_BYTES_MAX` bytes are sent.
    pub(super) fn new(keys: Keys, instance: u64, name: &str) -> Self {
        let name = name.chars().filter(char::is_ascii).take(NAME_BYTES_MAX).collect();
        Self { keys, instance, name, numbered: 0, entries: Vec::new() }
    }

    /// Adds an entry; what is beyond the bounds of one is left out.
    pub(super) fn push(&mut self, entry: &Entry) {
        let out = &mut self.entries;
        match entry {
            Entry::Said(Said::Presumed(presumption)) => {
                out.push(PRESUMED);
                put_presumption(out, presumption, None);
            }
            Entry::Said(Said::TakenBack { presumption, keep }) => {
                out.push(TAKEN_BACK);
                put_presumption(out, presumption, Some(*keep));
            }
            Entry::Loads(loads) | Entry::Changed(loads) => {
                let loads = &loads[..loads.len().min(LOADS_MAX)];
                out.push(if matches!(entry, Entry::Loads(_)) { LOADS } else { CHANGED });
                out.extend_from_slice(&(loads.len() as u16).to_le_bytes());
                for (worker, load) in loads {
                    put_text(out, worker.as_str());
                    out.extend_from_slice(&load.requests.to_le_bytes());
                    out.extend_from_slice(&load.decodes.to_le_bytes());
                    out.extend_from_slice(&load.queued_tokens.to_le_bytes());
                }
            }
        }
    }

    /// Bytes of the entries so far.
    pub(super) fn entry_bytes(&self) -> usize {
        self.entries.len()
    }

    /// Forgets the entries so far.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// The message, numbered and signed; the next one is empty again.
    pub(super) fn seal(&mut self, sent_ms: u64) -> Vec<u8> {
        self.numbered += 1;
        let bytes = HEAD_BYTES + 1 + self.name.len() + self.entries.len() + MAC_BYTES;
        let mut out = Vec::with_capacity(bytes);
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        for number in [self.keys.fingerprint(), self.instance, self.numbered, sent_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_text(&mut out, &self.name);
        out.append(&mut self.entries);
        let code = self.keys.code(&out);
        out.extend_from_slice(&code);
        out
    }
}

impl Frame {
    /// Takes a message apart once its code proves who made it.
    ///
    /// # Errors
    /// `Refused`; nothing was believed of it.
    pub(super) fn read(bytes: &[u8], keys: &Keys) -> Result<Self, Refused> {
        if bytes.len() > FRAME_BYTES_MAX || bytes.len() < HEAD_BYTES + 1 + MAC_BYTES {
            return Err(Refused::Garbage);
        }
        let (message, code) = bytes.split_at(bytes.len() - MAC_BYTES);
        let mut rest = Reader(message);
        if rest.array()? != MAGIC {
            return Err(Refused::Garbage);
        }
        let [version] = rest.array()?;
        if version != VERSION {
            return Err(Refused::Version(version));
        }
        let fingerprint = rest.u64()?;
        if fingerprint != keys.fingerprint() {
            return Err(Refused::Configuration(fingerprint));
        }
        if !keys.accepts(message, code) {
            return Err(Refused::Forged);
        }
        let head = Head {
            instance: rest.u64()?,
            number: rest.u64()?,
            sent_ms: rest.u64()?,
            name: rest.text(NAME_BYTES_MAX)?.to_owned(),
        };
        let mut entries = Vec::new();
        while !rest.0.is_empty() {
            entries.push(rest.entry()?);
        }
        Ok(Self { head, entries })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("names and worker ids are short"));
    out.extend_from_slice(text.as_bytes());
}

fn put_presumption(out: &mut Vec<u8>, said: &Presumption, keep: Option<usize>) {
    let blocks = &said.blocks[..said.blocks.len().min(BLOCKS_MAX)];
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    out.push(
        flag(said.confirms, CONFIRMS)
            | flag(said.domain == Domain::Tokens, TOKENS)
            | flag(said.tenant, TENANT),
    );
    put_text(out, said.worker.as_str());
    if let Some(keep) = keep {
        out.extend_from_slice(&(keep.min(blocks.len()) as u32).to_le_bytes());
    }
    out.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
    out.reserve(blocks.len() * 8);
    for block in blocks {
        out.extend_from_slice(&block.as_u64().to_le_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Refused::Garbage)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, Refused> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refused> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Refused> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Refused::Garbage)?;
        self.0 = rest;
        Ok(head)
    }

    fn text(&mut self, bytes_max: usize) -> Result<&'a str, Refused> {
        let [length] = self.array()?;
        let bytes = self.bytes(usize::from(length))?;
        let fine = bytes.len() <= bytes_max && bytes.iter().all(u8::is_ascii_graphic);
        std::str::from_utf8(bytes).ok().filter(|_| fine).ok_or(Refused::Garbage)
    }

    fn worker(&mut self) -> Result<WorkerId, Refused> {
        WorkerId::try_new(self.text(usize::MAX)?).map_err(|_| Refused::Garbage)
    }

    fn entry(&mut self) -> Result<Entry, Refused> {
        let [kind] = self.array()?;
        match kind {
            PRESUMED => Ok(Entry::Said(Said::Presumed(self.presumption(false)?.0))),
            TAKEN_BACK => {
                let (presumption, keep) = self.presumption(true)?;
                Ok(Entry::Said(Said::TakenBack { presumption, keep }))
            }
            LOADS => self.loads().map(Entry::Loads),
            CHANGED => self.loads().map(Entry::Changed),
            _ => Err(Refused::Garbage),
        }
    }

    fn presumption(&mut self, with_keep: bool) -> Result<(Presumption, usize), Refused> {
        let [flags] = self.array()?;
        let worker = self.worker()?;
        let keep = if with_keep { self.u32()? as usize } else { 0 };
        let count = self.u32()? as usize;
        if flags & !(CONFIRMS | TOKENS | TENANT) != 0 || count > BLOCKS_MAX || keep > count {
            return Err(Refused::Garbage);
        }
        // Taken from the message before anything is made for it.
        let (words, _) = self.bytes(count * 8)?.as_chunks();
        let blocks: Arc<[BlockHash]> =
            words.iter().map(|word| BlockHash::new(u64::from_le_bytes(*word))).collect();
        let presumption = Presumption {
            worker,
            confirms: flags & CONFIRMS != 0,
            domain: if flags & TOKENS != 0 { Domain::Tokens } else { Domain::Text },
            tenant: flags & TENANT != 0,
            blocks,
        };
        Ok((presumption, keep))
    }

    fn loads(&mut self) -> Result<Vec<(WorkerId, Load)>, Refused> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        if count > LOADS_MAX {
            return Err(Refused::Garbage);
        }
        let load = |reader: &mut Self| {
            let worker = reader.worker()?;
            let (requests, decodes) = (reader.u32()?, reader.u32()?);
            Ok((worker, Load { requests, decodes, queued_tokens: reader.u64()? }))
        };
        (0..count).map(|_| load(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> Keys {
        Keys::new("a secret of the tests", 128)
    }

    fn worker() -> impl Strategy<Value = WorkerId> {
        "[A-Za-z0-9._:-]{1,128}".prop_map(|id| WorkerId::try_new(&id).expect("fits"))
    }

    prop_compose! {
        fn presumption()(
            worker in worker(),
            flags in any::<[bool; 3]>(),
            blocks in prop::collection::vec(any::<u64>().prop_map(BlockHash::new), 0..40),
        ) -> Presumption {
            let [confirms, tokens, tenant] = flags;
            let domain = if tokens { Domain::Tokens } else { Domain::Text };
            Presumption { worker, confirms, domain, tenant, blocks: blocks.into() }
        }
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let load = any::<(u32, u64, u32)>().prop_map(|(requests, queued_tokens, decodes)| Load {
            requests,
            queued_tokens,
            decodes,
        });
        prop_oneof![
            presumption().prop_map(|said| Entry::Said(Said::Presumed(said))),
            (presumption(), any::<prop::sample::Index>()).prop_map(|(presumption, keep)| {
                let keep = keep.index(presumption.blocks.len() + 1);
                Entry::Said(Said::TakenBack { presumption, keep })
            }),
            prop::collection::vec((worker(), load.clone()), 0..20).prop_map(Entry::Loads),
            prop::collection::vec((worker(), load), 0..20).prop_map(Entry::Changed),
        ]
    }

    fn sealed(entries: &[Entry]) -> Vec<u8> {
        let mut batch = Batch::new(keys(), 7, "router-a");
        for entry in entries {
            batch.push(entry);
        }
        batch.seal(1_000)
    }

    proptest! {
        #[test]
        fn what_is_told_is_read(entries in prop::collection::vec(entry(), 0..12)) {
            let frame = Frame::read(&sealed(&entries), &keys()).expect("reads");
            prop_assert_eq!(frame.entries, entries);
            let head = Head { instance: 7, number: 1, sent_ms: 1_000, name: "router-a".to_owned() };
            prop_assert_eq!(frame.head, head);
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Frame::read(&bytes, &keys()).is_err());
        }

        #[test]
        fn a_changed_bit_is_noticed(
            entries in prop::collection::vec(entry(), 0..4),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut bytes = sealed(&entries);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::read(&bytes, &keys()).is_err());
        }

        /// As a router of another make with our secret might send them: no panic, and all bounds.
        #[test]
        fn signed_garbage_is_harmless(
            entries in prop::collection::vec(any::<u8>(), 0..300),
            kind in 1u8..5,
        ) {
            let mut batch = Batch::new(keys(), 7, "router-a");
            batch.entries.push(kind);
            batch.entries.extend(entries);
            if let Ok(frame) = Frame::read(&batch.seal(0), &keys()) {
                for entry in frame.entries {
                    match entry {
                        Entry::Loads(loads) | Entry::Changed(loads) => prop_assert!(loads.len() <= LOADS_MAX),
                        Entry::Said(Said::Presumed(said)) => {
                            prop_assert!(said.blocks.len() <= BLOCKS_MAX);
                        }
                        Entry::Said(Said::TakenBack { presumption, keep }) => {
                            prop_assert!(keep <= presumption.blocks.len());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn says_why_it_refuses() {
        let read = |bytes: &[u8]| Frame::read(bytes, &keys()).unwrap_err();
        let good = sealed(&[]);
        assert_eq!(read(b""), Refused::Garbage);
        assert_eq!(read(&vec![0; FRAME_BYTES_MAX + 1]), Refused::Garbage);
        let mut newer = good.clone();
        newer[3] = 9;
        assert_eq!(read(&newer), Refused::Version(9));
        let other = Keys::new("another secret here", 128);
        let refused = Frame::read(&good, &other).unwrap_err();
        assert_eq!(refused, Refused::Configuration(keys().fingerprint()));
        let mut forged = good;
        forged[12] ^= 1;
        assert_eq!(read(&forged), Refused::Forged);
    }

    #[test]
    fn the_largest_entries_fit_into_a_message() {
        let worker = WorkerId::try_new(&"w".repeat(128)).expect("fits");
        let blocks: Arc<[BlockHash]> = vec![BlockHash::new(1); BLOCKS_MAX + 5].into();
        let domain = Domain::Text;
        let said =
            Presumption { worker: worker.clone(), confirms: true, domain, tenant: false, blocks };
        let loads = vec![(worker, Load::default()); LOADS_MAX + 5];
        for entry in [Entry::Said(Said::Presumed(said)), Entry::Loads(loads)] {
            let frame = Frame::read(&sealed(&[entry]), &keys()).expect("reads");
            match &frame.entries[..] {
                [Entry::Said(Said::Presumed(said))] => assert_eq!(said.blocks.len(), BLOCKS_MAX),
                [Entry::Loads(loads)] => assert_eq!(loads.len(), LOADS_MAX),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn numbers_grow() {
        let mut batch = Batch::new(keys(), 7, "router-a");
        let number = |bytes: Vec<u8>| Frame::read(&bytes, &keys()).expect("reads").head.number;
        assert_eq!([number(batch.seal(0)), number(batch.seal(0))], [1, 2]);
    }
}
