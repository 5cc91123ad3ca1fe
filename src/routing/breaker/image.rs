//! A breaker, told so that it can be stored and gone on with.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::before;
use super::super::window::{SuccessWindow, WindowImage};
use super::{Breaker, BreakerParams, Inner, after};

/// Where a [`Breaker`] stands; its parameters are not part of it. Stored by the names of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BreakerImage {
    /// Whether the worker is ejected.
    pub ejected: bool,
    /// If so, how long until a probe may go. One in flight does not count: it reports to whoever
    /// sent it, so it holds nobody else up.
    pub probe_in: Duration,
    /// Else how long the breaker has been closed.
    pub closed_for: Duration,
    /// Failures since then without a success between them.
    pub failures_in_row: u32,
    /// How long since the last of them, or since it was closed.
    pub steady_for: Duration,
    /// How long the next ejection would last.
    pub cool_down: Duration,
    /// The outcomes of late.
    pub window: WindowImage,
}

impl Breaker {
    /// Where it stands.
    pub fn image(&self, now: Instant) -> BreakerImage {
        let ago = |then| now.saturating_duration_since(then);
        let image = BreakerImage {
            cool_down: self.cool_down,
            window: self.window.image(now),
            ..BreakerImage::default()
        };
        match self.inner {
            Inner::Closed { since, failures_in_row, steady_since } => BreakerImage {
                closed_for: ago(since),
                failures_in_row,
                steady_for: ago(steady_since),
                ..image
            },
            Inner::Open { until } => BreakerImage {
                ejected: true,
                probe_in: until.saturating_duration_since(now),
                ..image
            },
            Inner::HalfOpen { .. } => BreakerImage { ejected: true, ..image },
        }
    }

    /// Goes on from an image taken `away` ago, under other parameters if they have changed.
    pub fn restore(
        params: BreakerParams,
        image: &BreakerImage,
        away: Duration,
        now: Instant,
    ) -> Self {
        let settings = params.settings();
        let then = |ago: Duration| before(now, ago.saturating_add(away));
        let inner = if image.ejected {
            let left = image.probe_in.saturating_sub(away).min(settings.cool_down_max);
            Inner::Open { until: after(now, left) }
        } else {
            Inner::Closed {
                since: then(image.closed_for),
                failures_in_row: image.failures_in_row,
                steady_since: then(image.steady_for),
            }
        };
        Self {
            inner,
            window: SuccessWindow::restore(settings.window, &image.window, away, now),
            cool_down: image.cool_down.clamp(settings.cool_down_first, settings.cool_down_max),
            params,
        }
    }
}
