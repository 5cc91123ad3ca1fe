//! Reads what an engine answers to `GET /kv_event_sources`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Attach, Place,
    endpoint::{BadEndpoint, Endpoint},
};

/// What a worker is asked for.
pub const PATH: &str = "/kv_event_sources";
/// Largest answer read.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Data-parallel ranks of one worker.
pub const RANKS_MAX: usize = 256;

/// Why an answer says no sources.
#[derive(Debug, thiserror::Error)]
pub enum BadAnswer {
    /// Longer than `ANSWER_BYTES_MAX`.
    #[error("the answer is over {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// Not what vLLM answers.
    #[error("the answer is not a list of sources: {0}")]
    Malformed(#[from] serde_json::Error),
    /// More than `RANKS_MAX`.
    #[error("more than {RANKS_MAX} ranks")]
    TooMany,
    /// An endpoint that we cannot use.
    #[error("rank {0}: {1}")]
    Endpoint(u32, #[source] BadEndpoint),
}

#[derive(Deserialize)]
struct Source {
    #[serde(default = "yes")]
    enable_kv_cache_events: bool,
    #[serde(default)]
    publisher: Option<String>,
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    replay_endpoint: Option<String>,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    buffer_steps: Option<u64>,
    #[serde(default)]
    data_parallel_rank: Option<u32>,
}

fn yes() -> bool {
    true
}

/// The places where a worker's ranks publish, by rank. No rank: events are off.
///
/// # Errors
/// See [`BadAnswer`].
pub fn parse(answer: &[u8], worker_host: &str) -> Result<Vec<(u32, Place)>, BadAnswer> {
    if answer.len() > ANSWER_BYTES_MAX {
        return Err(BadAnswer::TooLong);
    }
    let mut sources = BTreeMap::new();
    if answer.trim_ascii_start().first() == Some(&b'[') {
        let list: Vec<Source> = serde_json::from_slice(answer)?;
        for (at, source) in list.into_iter().enumerate() {
            sources.insert(source.data_parallel_rank.unwrap_or(at as u32), source);
        }
    } else {
        let map: BTreeMap<String, &RawValue> = serde_json::from_slice(answer)?;
        for (rank, source) in map {
            // Later versions may say more beside the ranks.
            if let Ok(rank) = rank.parse() {
                sources.insert(rank, serde_json::from_str(source.get())?);
            }
        }
    }
    if sources.len() > RANKS_MAX {
        return Err(BadAnswer::TooMany);
    }
    let mut places = Vec::new();
    for (rank, source) in sources {
        let off = !source.enable_kv_cache_events
            || source.publisher.as_deref().is_some_and(|publisher| publisher != "zmq");
        if let Some(endpoint) = source.endpoint.as_deref().filter(|text| !off && !text.is_empty()) {
            let at = |text: &str| {
                let endpoint = Endpoint::parse(text).map_err(|bad| BadAnswer::Endpoint(rank, bad));
                endpoint.map(|endpoint| endpoint.at_worker(worker_host))
            };
            let replay = source.replay_endpoint.filter(|text| !text.is_empty());
            let replay = replay.filter(|_| source.buffer_steps != Some(0));
            let place = Place {
                events: Attach::Connect(at(endpoint)?),
                replay: replay.as_deref().map(at).transpose()?,
                topic: source.topic.unwrap_or_default(),
            };
            places.push((rank, place));
        }
    }
    spread(&mut places);
    Ok(places)
}

/// An answer that repeats one configuration for all ranks means the base port: each rank adds
/// its number to it.
fn spread(places: &mut [(u32, Place)]) {
    let same = |a: &Place, b: &Place| a.events == b.events;
    let repeated = matches!(places, [(_, first), rest @ ..]
        if !rest.is_empty() && rest.iter().all(|(_, place)| same(place, first)));
    if !repeated {
        return;
    }
    for (rank, place) in places {
        let add = |endpoint: &mut Endpoint| {
            let port = u32::from(endpoint.port).saturating_add(*rank);
            endpoint.port = u16::try_from(port).unwrap_or(endpoint.port);
        };
        if let Attach::Connect(endpoint) = &mut place.events {
            add(endpoint);
        }
        place.replay.as_mut().map(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connects(place: &Place) -> String {
        match &place.events {
            Attach::Connect(endpoint) => endpoint.to_string(),
            Attach::Bind(_) => panic!("an answer never makes us bind"),
        }
    }

    #[test]
    fn reads_what_vllm_answers() {
        let recorded = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/vllm-0.32.0/kv_event_sources.http.txt"
        );
        let recorded = std::fs::read_to_string(recorded).expect("fixture");
        let body = &recorded[recorded.rfind("\r\n\r\n").expect("a head") + 4..];
        let places = parse(body.trim().as_bytes(), "10.1.2.3").expect("sources");
        let [(0, place)] = &places[..] else { panic!("{places:?}") };
        assert_eq!(connects(place), "tcp://10.1.2.3:15557");
        assert_eq!(place.replay.as_ref().expect("replay").to_string(), "tcp://10.1.2.3:16557");
        assert_eq!(place.topic, "kv-events");
    }

    #[test]
    fn reads_a_list_too() {
        let answer = br#"[{"data_parallel_rank":1,"endpoint":"tcp://10.0.0.1:5558","replay_endpoint":null,"topic":""}]"#;
        let places = parse(answer, "w").expect("sources");
        assert_eq!(places[0].0, 1);
        assert_eq!(connects(&places[0].1), "tcp://10.0.0.1:5558");
        assert_eq!(places[0].1.replay, None);
    }

    #[test]
    fn ranks_that_repeat_the_base_port_are_spread() {
        let one = r#"{"endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:6557"}"#;
        let places = parse(format!(r#"{{"0":{one},"2":{one}}}"#).as_bytes(), "w").expect("sources");
        assert_eq!(connects(&places[1].1), "tcp://w:5559");
        assert_eq!(places[1].1.replay.as_ref().expect("replay").port, 6559);
        let two = r#"{"0":{"endpoint":"tcp://*:1"},"1":{"endpoint":"tcp://*:2"}}"#;
        assert_eq!(connects(&parse(two.as_bytes(), "w").expect("sources")[1].1), "tcp://w:2");
    }

    #[test]
    fn events_that_are_off_are_no_error() {
        for answer in [
            "{}",
            "[]",
            r#"{"0":{"enable_kv_cache_events":false,"endpoint":"tcp://*:5557"}}"#,
            r#"{"0":{"publisher":"null","endpoint":"tcp://*:5557"}}"#,
            r#"{"0":{"publisher":"zmq"},"version":"9"}"#,
        ] {
            assert!(parse(answer.as_bytes(), "w").expect("no sources").is_empty(), "{answer}");
        }
    }

    #[test]
    fn what_is_no_answer_says_so() {
        for answer in ["", "null", "7", "{\"0\":7}", r#"{"0":{"endpoint":"ipc:///x"}}"#] {
            assert!(parse(answer.as_bytes(), "w").is_err(), "{answer}");
        }
        assert!(matches!(parse(&vec![b' '; ANSWER_BYTES_MAX + 1], "w"), Err(BadAnswer::TooLong)));
    }
}
