//! Arrivals stamped in ticks are spread over their tick, as they were before somebody rounded them.

use super::{Request, draws::Draws};

/// Whether a trace's stamps are ticks: fewer than half of them are distinct.
pub fn is_ticked(requests: &[Request]) -> bool {
    let distinct = 1 + requests.windows(2).filter(|pair| pair[0].t < pair[1].t).count();
    requests.len() > 1 && 2 * distinct < requests.len()
}

/// Spreads requests of one stamp evenly at random over the time until the next stamp; their order
/// stays. Those of the last stamp are spread over the mean tick.
pub fn spread(requests: &mut [Request], seed: u64) {
    let Some((first, last)) = requests.first().zip(requests.last()).map(|(a, b)| (a.t, b.t)) else {
        return;
    };
    let distinct = requests.windows(2).filter(|pair| pair[0].t < pair[1].t).count();
    let mean = if distinct == 0 { 0.0 } else { (last - first) / distinct as f64 };
    let mut draws = Draws::new(seed, 0x71c);
    let mut begin = 0;
    while begin < requests.len() {
        let stamp = requests[begin].t;
        let end = begin + requests[begin..].partition_point(|request| request.t <= stamp);
        let tick = requests.get(end).map_or(mean, |next| next.t - stamp);
        let mut offsets: Vec<f64> = (begin..end).map(|_| draws.share() * tick).collect();
        offsets.sort_by(f64::total_cmp);
        // One that is alone in its tick is as likely to be late in it as any other.
        for (request, offset) in requests[begin..end].iter_mut().zip(offsets) {
            request.t = stamp + offset;
        }
        begin = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::Trace;

    fn at(stamps: &[u32]) -> Vec<Request> {
        let model = Trace::bundled().requests[0].clone();
        stamps.iter().map(|t| Request { t: f64::from(*t), ..model.clone() }).collect()
    }

    #[test]
    fn knows_ticks() {
        assert!(is_ticked(&at(&[0, 0, 0, 3, 3, 3, 6, 6])));
        assert!(!is_ticked(&at(&[0, 1, 2, 2, 4])));
        assert!(!is_ticked(&at(&[])));
    }

    proptest! {
        #[test]
        fn every_request_stays_in_its_tick_and_in_order(
            mut stamps in prop::collection::vec(0_u32..20, 1..60), seed: u64,
        ) {
            stamps.sort_unstable();
            let mut requests = at(&stamps);
            spread(&mut requests, seed);
            prop_assert!(requests.windows(2).all(|pair| pair[0].t <= pair[1].t));
            for (request, stamp) in requests.iter().zip(&stamps) {
                let next = stamps.iter().find(|next| *next > stamp);
                prop_assert!(request.t >= f64::from(*stamp));
                prop_assert!(next.is_none_or(|next| request.t <= f64::from(*next)));
            }
        }
    }
}
