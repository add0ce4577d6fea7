//! TensorBoard's event files: records of the format TFRecord, each of them a message `Event` of TensorFlow's
//! `event.proto`.

use prost::{Message, Oneof};

/// Values of a run at a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scalars {
    /// Steps of the run so far.
    pub(super) step: u64,
    /// Seconds since 1970.
    wall_time: f64,
    summary: Summary,
}

impl Scalars {
    pub(super) fn new(
        wall_time: f64,
        step: u64,
        values: impl Iterator<Item = (String, f64)>,
    ) -> Self {
        let value = values.map(|(tag, value)| Value {
            tag,
            simple_value: Some(value as f32),
        });
        Self {
            step,
            wall_time,
            summary: Summary {
                value: value.collect(),
            },
        }
    }

    /// Takes the values of others, which are of the same time.
    pub(super) fn replace_values(&mut self, other: Self) {
        self.summary = other.summary;
    }

    /// Whether their tags begin with `prefix`.
    pub(super) fn begin_with(&self, prefix: &str) -> bool {
        let values = &self.summary.value;
        values.iter().all(|value| value.tag.starts_with(prefix))
    }
}

/// An event, without the fields that are not used here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The beginning of a file: the version of the format, and the start of a session at step 0, which lets a reader drop
/// what it has read in earlier files.
pub(super) fn beginning(wall_time: f64) -> Vec<u8> {
    const START: i32 = 1;
    let version = What::FileVersion("brain.Event:2".to_owned());
    let session = What::SessionLog(SessionLog { status: START });
    let record = |what| {
        record(&Event {
            wall_time,
            step: 0,
            what: Some(what),
        })
    };
    [version, session].map(record).concat()
}

/// Scalars as a record.
pub(super) fn encode(scalars: &Scalars) -> Vec<u8> {
    record(&Event {
        wall_time: scalars.wall_time,
        step: scalars.step as i64,
        what: Some(What::Summary(scalars.summary.clone())),
    })
}

/// A message with its length before it, and the checksums of both.
fn record(event: &Event) -> Vec<u8> {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    [
        &length[..],
        &checksum(&length),
        &message,
        &checksum(&message),
    ]
    .concat()
}

/// The scalars of a file up to the first record that is not complete, which a crash left, and the number of bytes from
/// there on.
pub(super) fn decode(file: &[u8]) -> (Vec<Scalars>, usize) {
    let mut rest = file;
    let events = std::iter::from_fn(|| {
        let (event, next) = first(rest)?;
        rest = next;
        Some(event)
    });
    let mut scalars = Vec::new();
    scalars.extend(events.filter_map(|event| match event.what? {
        What::Summary(summary) => Some(Scalars {
            step: event.step.try_into().ok()?,
            wall_time: event.wall_time,
            summary,
        }),
        What::FileVersion(_) | What::SessionLog(_) => None,
    }));
    (scalars, rest.len())
}

/// The first event of a file, and the bytes after it.
fn first(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let rest = after_checksum(length, rest)?;
    let length = u64::from_le_bytes(*length).try_into().ok()?;
    let (message, rest) = rest.split_at_checked(length)?;
    let rest = after_checksum(message, rest)?;
    Some((Event::decode(message).ok()?, rest))
}

/// What follows the checksum of `data` in `rest`, if that is correct.
fn after_checksum<'a>(data: &[u8], rest: &'a [u8]) -> Option<&'a [u8]> {
    let (found, rest) = rest.split_first_chunk()?;
    (*found == checksum(data)).then_some(rest)
}

/// The CRC-32C of TFRecord, which is masked because the data of a record may be records.
fn checksum(data: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(data).rotate_right(15);
    crc.wrapping_add(0xa282_ead8).to_le_bytes()
}
