//! How long the program was in its spans.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// A span's name and its `layer`, empty where it has none.
pub(crate) type Key = (&'static str, String);

/// The time in all spans that have been left so far.
#[derive(Clone, Default)]
pub(crate) struct Spans(Arc<Mutex<BTreeMap<Key, Duration>>>);

impl Spans {
    /// Times every span of this process from now on.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let spans = Self::default();
        tracing_subscriber::registry()
            .with(spans.clone())
            .try_init()?;
        Ok(spans)
    }

    /// The times so far; they begin anew.
    pub(crate) fn take(&self) -> BTreeMap<Key, Duration> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is kept with an open span.
struct Open {
    key: Key,
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

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut layer = LayerName::default();
        attributes.record(&mut layer);
        if let Some(span) = context.span(id) {
            let key = (attributes.metadata().name(), layer.0);
            let since = Instant::now();
            span.extensions_mut().insert(Open { key, since });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(span) = context.span(&id)
            && let Some(Open { key, since }) = span.extensions_mut().remove::<Open>()
        {
            let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *times.entry(key).or_default() += since.elapsed();
        }
    }
}
