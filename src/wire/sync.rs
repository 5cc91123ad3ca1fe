//! `POST /v1/sync`: a reporter and the router find out where they differ, and mend it.
//!
//! The reporter sends a digest of what its engine holds: per bucket, the sum of all block names,
//! mixed. Only buckets whose sums differ are exchanged, or everything when most do. The state
//! described is the one after batch `seq`.

use serde::{Deserialize, Serialize};

use super::{
    event::Stored,
    report::{self, Malformed},
    report_event::{BlocksForm, stored},
};

/// Most buckets a digest may have; a power of two.
pub const BUCKETS_MAX: usize = 4096;

/// One step of a sync.
#[derive(Debug, Clone)]
pub struct Sync {
    /// Who.
    pub worker_id: String,
    /// Life of the engine process.
    pub epoch: String,
    /// Data-parallel rank.
    pub rank: u32,
    /// The last batch that is part of this state; `None` before the first.
    pub seq: Option<u64>,
    /// What is said.
    pub step: Step,
}

/// What a step says.
#[derive(Debug, Clone)]
pub enum Step {
    /// Sums of what is held: `sums.len()` buckets.
    Digest {
        /// Distinct blocks.
        blocks: u64,
        /// One a bucket.
        sums: Vec<u64>,
    },
    /// All blocks of some buckets.
    Buckets {
        /// How many buckets there are.
        of: usize,
        /// Which these are.
        list: Vec<usize>,
        /// Their blocks, parents first.
        blocks: Vec<Block>,
    },
    /// A part of all blocks.
    Snapshot {
        /// From 0 up; part 0 clears what we believe.
        part: u64,
        /// Whether nothing follows.
        last: bool,
        /// Parents first.
        blocks: Vec<Block>,
    },
}

/// One block, as the only one of its `Stored`.
#[derive(Debug, Clone)]
pub struct Block {
    /// Name and content.
    pub stored: Stored,
    /// Physical copies.
    pub copies: u32,
}

/// What the router wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Want {
    /// We agree.
    Nothing,
    /// The buckets of `differ`.
    Buckets,
    /// Everything.
    Snapshot,
}

#[derive(Deserialize)]
struct Form {
    worker_id: String,
    #[serde(deserialize_with = "report::epoch")]
    epoch: String,
    #[serde(default)]
    rank: u32,
    seq: i128,
    #[serde(default)]
    digest: Option<DigestForm>,
    #[serde(default)]
    buckets: Option<BucketsForm>,
    #[serde(default)]
    snapshot: Option<SnapshotForm>,
}

#[derive(Deserialize)]
struct DigestForm {
    buckets: usize,
    blocks: u64,
    sums: Vec<u64>,
}

#[derive(Deserialize)]
struct BucketsForm {
    of: usize,
    list: Vec<usize>,
    blocks: Vec<BlocksForm>,
}

#[derive(Deserialize)]
struct SnapshotForm {
    part: u64,
    last: bool,
    blocks: Vec<BlocksForm>,
}

/// Reads a step.
///
/// # Errors
/// `Malformed` naming the field.
pub fn parse(body: &[u8]) -> Result<Sync, Malformed> {
    let form: Form = report::parse(body)?;
    let step = match (form.digest, form.buckets, form.snapshot) {
        (Some(digest), None, None) => {
            of("digest.buckets", digest.buckets)?;
            if digest.sums.len() != digest.buckets {
                let problem = format!("{} for {} buckets", digest.sums.len(), digest.buckets);
                return Err(Malformed::new("digest.sums", problem));
            }
            Step::Digest { blocks: digest.blocks, sums: digest.sums }
        }
        (None, Some(buckets), None) => {
            of("buckets.of", buckets.of)?;
            if buckets.list.iter().any(|bucket| *bucket >= buckets.of) {
                return Err(Malformed::new("buckets.list", "names a bucket that is not there"));
            }
            let blocks = blocks("buckets", buckets.blocks)?;
            Step::Buckets { of: buckets.of, list: buckets.list, blocks }
        }
        (None, None, Some(snapshot)) => {
            let blocks = blocks("snapshot", snapshot.blocks)?;
            Step::Snapshot { part: snapshot.part, last: snapshot.last, blocks }
        }
        _ => {
            let problem = "exactly one of `digest`, `buckets` and `snapshot` is required";
            return Err(Malformed::new("body", problem));
        }
    };
    let seq = match form.seq {
        -1 => None,
        seq => Some(
            u64::try_from(seq)
                .map_err(|_| Malformed::new("seq", "is neither -1 nor a 64-bit number"))?,
        ),
    };
    Ok(Sync { worker_id: form.worker_id, epoch: form.epoch, rank: form.rank, seq, step })
}

fn of(field: &str, buckets: usize) -> Result<(), Malformed> {
    if buckets.is_power_of_two() && buckets <= BUCKETS_MAX {
        return Ok(());
    }
    Err(Malformed::new(field, format!("must be a power of two up to {BUCKETS_MAX}")))
}

fn blocks(field: &str, forms: Vec<BlocksForm>) -> Result<Vec<Block>, Malformed> {
    let block = |(at, form): (usize, BlocksForm)| {
        let copies = form.copies.unwrap_or(1);
        let id = match form.block_hash {
            None => Err(Malformed::new("block_hash", "is required")),
            Some(_) if copies == 0 => Err(Malformed::new("copies", "is 0: leave the block out")),
            Some(id) => Ok(id),
        };
        let stored = id.and_then(|id| stored(vec![id], form)).map_err(|mut malformed| {
            malformed.field = format!("{field}.blocks[{at}].{}", malformed.field);
            malformed
        })?;
        Ok(Block { stored, copies })
    };
    forms.into_iter().enumerate().map(block).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::event::BlockId, *};

    fn step(step: &str) -> Result<Sync, Malformed> {
        parse(format!(r#"{{"worker_id":"w","epoch":"e","seq":-1,{step}}}"#).as_bytes())
    }

    #[test]
    fn reads_the_three_steps() {
        let digest = step(r#""digest":{"buckets":2,"blocks":1,"sums":[0,18446744073709551615]}"#);
        let digest = digest.expect("well formed");
        assert_eq!(digest.seq, None);
        assert!(matches!(digest.step, Step::Digest { blocks: 1, sums } if sums[1] == u64::MAX));
        let buckets = step(
            r#""rank":2,"buckets":{"of":4,"list":[1,3],"blocks":[
                {"block_hash":5,"parent_block_hash":null,"copies":2,"token_ids":[1,2],"block_size":2},
                {"block_hash":6,"parent_block_hash":5,"text":["ab"]}]}"#,
        )
        .expect("well formed");
        assert_eq!(buckets.rank, 2);
        let Step::Buckets { of: 4, list, blocks } = buckets.step else { panic!("buckets") };
        assert_eq!(list, [1, 3]);
        assert_eq!((blocks[0].copies, blocks[1].copies), (2, 1));
        assert_eq!(blocks[1].stored.parent, Some(BlockId(5)));
        let snapshot = step(r#""snapshot":{"part":0,"last":true,"blocks":[]}"#);
        assert!(matches!(snapshot.expect("well formed").step, Step::Snapshot { last: true, .. }));
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        let field = |text: &str| step(text).expect_err("malformed").field;
        assert_eq!(field(r#""digest":{"buckets":3,"blocks":0,"sums":[0,0,0]}"#), "digest.buckets");
        assert_eq!(field(r#""digest":{"buckets":2,"blocks":0,"sums":[0]}"#), "digest.sums");
        assert_eq!(field(r#""buckets":{"of":2,"list":[2],"blocks":[]}"#), "buckets.list");
        let block =
            r#""snapshot":{"part":0,"last":true,"blocks":[{"block_hash":1,"token_ids":[1]}]}"#;
        assert_eq!(field(block), "snapshot.blocks[0].block_size");
        assert_eq!(field(r#""x":1"#), "body");
        let low = br#"{"worker_id":"w","epoch":"e","seq":-2,"snapshot":{"part":0,"last":true,"blocks":[]}}"#;
        assert_eq!(parse(low).expect_err("malformed").field, "seq");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
