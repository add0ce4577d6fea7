//! The time that a process spends in its spans.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// A span's name and its field `layer`, which is empty if it has none.
pub type SpanKey = (&'static str, String);

/// All spans with the same key together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanTotal {
    /// The number of spans.
    pub count: u32,
    /// The sum of their times.
    pub time: Duration,
}

/// A [`Layer`] that sums the times of closed spans.
#[derive(Clone, Default)]
pub struct SpanTimes {
    within: Option<&'static str>,
    totals: Arc<Mutex<BTreeMap<SpanKey, SpanTotal>>>,
}

impl SpanTimes {
    /// Times the spans of this name and those inside them, and no others.
    #[must_use]
    pub fn within(name: &'static str) -> Self {
        Self {
            within: Some(name),
            ..Self::default()
        }
    }

    /// Times all spans of this process from now on.
    ///
    /// # Errors
    /// When the process has a subscriber.
    pub fn install() -> Result<Self, TryInitError> {
        let times = Self::default();
        tracing_subscriber::registry()
            .with(times.clone())
            .try_init()?;
        Ok(times)
    }

    /// The times since the last call, or since the start.
    #[must_use]
    pub fn take(&self) -> BTreeMap<SpanKey, SpanTotal> {
        std::mem::take(&mut self.totals.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The data of an open span.
struct Open {
    key: SpanKey,
    since: Instant,
}

#[derive(Default)]
struct LayerName(String);

impl Visit for LayerName {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "layer" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanTimes {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        let within = |name| span.scope().any(|outer| outer.name() == name);
        if self.within.is_none_or(within) {
            let mut layer = LayerName::default();
            attributes.record(&mut layer);
            let key = (attributes.metadata().name(), layer.0);
            let since = Instant::now();
            span.extensions_mut().insert(Open { key, since });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(span) = context.span(&id)
            && let Some(Open { key, since }) = span.extensions_mut().remove::<Open>()
        {
            let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
            let total = totals.entry(key).or_default();
            total.count += 1;
            total.time += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::debug_span;

    #[test]
    fn spans_outside_do_not_count() {
        let times = SpanTimes::within("step");
        let subscriber = tracing_subscriber::registry().with(times.clone());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..3 {
                let _step = debug_span!("step").entered();
                let _forward = debug_span!("forward", layer = "a").entered();
            }
            let _evaluation = debug_span!("evaluation").entered();
            let _forward = debug_span!("forward", layer = "a").entered();
        });
        let totals = times.take();
        let counts: Vec<_> = totals
            .iter()
            .map(|((name, layer), total)| (*name, layer.as_str(), total.count))
            .collect();
        assert_eq!(counts, [("forward", "a", 3), ("step", "", 3)]);
        assert!(totals[&("forward", "a".to_owned())].time <= totals[&("step", String::new())].time);
        assert!(times.take().is_empty());
    }
}
