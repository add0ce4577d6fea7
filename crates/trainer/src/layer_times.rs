//! How long each layer took in training steps.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Gathers the spans `forward` and `backward` of every layer inside the span `step`.
#[derive(Clone, Default)]
pub(crate) struct LayerTimes(Arc<Mutex<Times>>);

#[derive(Default)]
struct Times {
    steps: u32,
    /// By layer: forward and backward.
    layers: BTreeMap<String, [Duration; 2]>,
}

impl LayerTimes {
    /// Mean seconds of a step by layer, forward and backward.
    pub(crate) fn means(&self) -> BTreeMap<String, [f64; 2]> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = f64::from(times.steps.max(1));
        let layers = times.layers.iter();
        layers
            .map(|(name, times)| (name.clone(), times.map(|time| time.as_secs_f64() / steps)))
            .collect()
    }
}

/// What is kept with an open span of a layer.
struct Open {
    layer: String,
    direction: usize,
    since: Instant,
}

#[derive(Default)]
struct LayerName(Option<String>);

impl Visit for LayerName {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "layer" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LayerTimes {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let direction = match attributes.metadata().name() {
            "forward" => 0,
            "backward" => 1,
            _ => return,
        };
        let mut layer = LayerName::default();
        attributes.record(&mut layer);
        if let (Some(span), Some(layer)) = (context.span(id), layer.0)
            && span.scope().any(|outer| outer.name() == "step")
        {
            span.extensions_mut().insert(Open {
                layer,
                direction,
                since: Instant::now(),
            });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if span.name() == "step" {
            times.steps += 1;
        } else if let Some(open) = span.extensions_mut().remove::<Open>() {
            times.layers.entry(open.layer).or_default()[open.direction] += open.since.elapsed();
        }
    }
}
