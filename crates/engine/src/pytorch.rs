//! State dicts in files of `torch.save`: zip archives, or before PyTorch 1.6 pickles and what their tensors contain.
//!
//! Candle's reader, `candle_core::pickle`, is for files that are trusted: it allocates what lengths in a file say, copies a
//! value whenever it is referred to, recurses into nested ones, panics where arguments are missing, and takes neither
//! strided tensors nor the older files.

use crate::view::{ElementType, Float, NamedViews, View};
use pickle::{Id, Pickle, Value};
use std::collections::{HashMap, HashSet};
use std::io::{self, Cursor};
use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

/// The pickle that a file of PyTorch before 1.6 begins with. The next one is the version.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
const LEGACY_VERSION: i64 = 1001;

/// Keys under which a state dict is commonly saved, beside the number of epochs or an optimiser's state.
const WRAPPERS: [&str; 5] = ["state_dict", "model_state_dict", "model", "net", "network"];

/// Bytes of the longest name. Names are copied, and a file may refer to one any number of times.
const MAX_NAME: usize = 256;

/// The most entries of a state dict, and of the modules of a network, which may contain themselves.
const MAX_ENTRIES: usize = 10_000;

/// The most dimensions of a tensor. Many tensors may share one shape.
const MAX_DIMENSIONS: usize = 8;

const BIG_ENDIAN: &str =
    "its values are big-endian; save it on a little-endian machine, or as safetensors";
const REMEDY: &str = "in Python, use torch.save(net.state_dict(), FILE)";

/// Whether a file begins as those of `torch.save` and pickles do: a zip archive, or the protocol and the opcode for a
/// dictionary, list, class, long integer or frame.
pub(crate) fn is_recognised(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, b'}' | b']' | b'c' | 0x8a | 0x95, ..]
    )
}

/// Names and tensors of the state dict in a file.
///
/// # Errors
/// What is wrong with the file, about `it`.
pub(crate) fn read(bytes: &[u8]) -> Result<NamedViews<'_>, String> {
    let file = match bytes {
        [b'P', b'K', ..] => File::read_archive(bytes)?,
        _ => File::read_legacy(bytes)?,
    };
    let entries = file.state_dict()?.into_iter();
    let views = entries.map(|(name, id)| match file.view(id) {
        Ok(view) => Ok((name, view)),
        Err(problem) => Err(format!("its entry `{name}` {problem}")),
    });
    views.collect()
}

fn damaged(what: impl std::fmt::Display) -> String {
    format!("it is incomplete or damaged ({what}); download or copy it again")
}

/// A file: values, and the bytes of the storages that tensors refer to, by key.
struct File<'a> {
    pickle: Pickle<'a>,
    storages: HashMap<&'a str, &'a [u8]>,
}

/// A reference to a storage.
struct Storage<'a> {
    /// Such as `FloatStorage`.
    class: &'a [u8],
    key: &'a str,
}

impl<'a> File<'a> {
    fn read_archive(bytes: &'a [u8]) -> Result<Self, String> {
        // PyTorch always writes the records of large archives, which the crate skips only where it knows that nothing is
        // before the archive; else it may take an entry of the directory for the first.
        let config = Config {
            archive_offset: ArchiveOffset::Known(0),
        };
        let zip = ZipArchive::with_config(config, Cursor::new(bytes)).map_err(damaged)?;
        let ends_with = |end: &[u8]| zip.file_names_raw().find(|name| name.ends_with(end));
        let Some(pickle) = ends_with(b"data.pkl") else {
            return Err(match ends_with(b".npy") {
                Some(_) => "it is an archive of NumPy arrays (.npz); in Python, save them with \
                            safetensors.numpy.save_file(dict(numpy.load(NPZ)), FILE) instead"
                    .to_owned(),
                None => format!("it is a zip archive that torch.save did not write; {REMEDY}"),
            });
        };
        let mut archive = Archive {
            folder: pickle[..pickle.len() - b"data.pkl".len()].to_owned(),
            zip,
            bytes,
            unread: bytes.len() as u64,
        };
        if let Some(order) = archive.entry("byteorder")?
            && order != b"little"
        {
            return Err(BIG_ENDIAN.to_owned());
        }
        let pickle = archive.entry("data.pkl")?.unwrap_or_default();
        let pickle = Pickle::read(pickle).map_err(|error| error.to_string())?;
        let keys: HashSet<_> = storages(&pickle).map(|storage| storage.key).collect();
        let storages = keys.into_iter().filter_map(|key| {
            let bytes = archive.entry(&format!("data/{key}")).transpose()?;
            Some(bytes.map(|bytes| (key, bytes)))
        });
        Ok(Self {
            storages: storages.collect::<Result<_, _>>()?,
            pickle,
        })
    }

    fn read_legacy(bytes: &'a [u8]) -> Result<Self, String> {
        let Some(mut rest) = bytes.strip_prefix(LEGACY_MAGIC) else {
            return Err(format!(
                "it was made by pickle, not by torch.save; {REMEDY}"
            ));
        };
        let mut next = || {
            let pickle = Pickle::read(rest).map_err(|error| error.to_string())?;
            rest = &rest[pickle.length..];
            Ok::<_, String>(pickle)
        };
        let (version, system, pickle, keys) = (next()?, next()?, next()?, next()?);
        if *version.get(version.root) != Value::Int(LEGACY_VERSION) {
            return Err(format!("it is not of version {LEGACY_VERSION}; {REMEDY}"));
        }
        let little_endian = system.entry(system.root, "little_endian");
        if little_endian.map(|id| system.get(id)) == Some(&Value::Bool(false)) {
            return Err(BIG_ENDIAN.to_owned());
        }
        let sizes = storages(&pickle).map(|storage| (storage.key, storage.element_size()));
        let sizes: HashMap<_, _> = sizes.collect();
        // Each storage is the number of its elements, and these.
        let mut next = |key| {
            let key = name(&keys, key)?;
            let (length, after) = rest.split_first_chunk()?;
            let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
            let size = *sizes.get(key)?;
            let (storage, after) = after.split_at_checked(length.checked_mul(size?)?)?;
            rest = after;
            Some((key, storage))
        };
        let storages = match keys.get(keys.root) {
            Value::List(keys) => keys.iter().map(|key| next(*key)).collect(),
            _ => None,
        };
        Ok(Self {
            storages: storages.ok_or_else(|| damaged("what its tensors contain is missing"))?,
            pickle,
        })
    }

    /// Names and values of the state dict: the value of the file, or one in it.
    fn state_dict(&self) -> Result<Vec<(String, Id)>, String> {
        let pickle = &self.pickle;
        let mut found = pickle.root;
        // A few dictionaries within each other.
        for _ in 0..4 {
            let Value::Dict(entries) = pickle.get(found) else {
                if self.tensor(found).is_some() {
                    return Err(format!(
                        "it has a single tensor and no state_dict; {REMEDY}"
                    ));
                }
                return self.module(found);
            };
            if entries.len() > MAX_ENTRIES {
                return Err(format!("it has more than {MAX_ENTRIES} entries; {REMEDY}"));
            }
            let inner = WRAPPERS.iter().filter_map(|key| pickle.entry(found, key));
            let mut inner = inner.filter(|id| match pickle.get(*id) {
                Value::Dict(_) => true,
                Value::Call { .. } => self.tensor(*id).is_none(),
                _ => false,
            });
            if let Some(inner) = inner.next() {
                found = inner;
                continue;
            }
            let names = || entries.iter().map(|(key, _)| name(pickle, *key));
            if !entries.iter().any(|(_, id)| self.tensor(*id).is_some()) {
                let names: Vec<_> = names().flatten().take(8).collect();
                let names = names.join(", ");
                return Err(format!("it has no state_dict, but [{names}]; {REMEDY}"));
            }
            let entries = names().zip(entries);
            let entries = entries.map(|(name, (_, id))| Some((name?.to_owned(), *id)));
            let entries: Option<_> = entries.collect();
            return entries.ok_or_else(|| "it has tensors without names".to_owned());
        }
        Err(format!("it has no state_dict; {REMEDY}"))
    }

    /// Names and tensors of a network that was saved itself, as an object or as TorchScript.
    fn module(&self, network: Id) -> Result<Vec<(String, Id)>, String> {
        let pickle = &self.pickle;
        let mut tensors = Vec::new();
        let mut unread = vec![(String::new(), network)];
        let mut entries_left = MAX_ENTRIES;
        while let Some((path, id)) = unread.pop() {
            if self.tensor(id).is_some() {
                tensors.push((path, id));
                continue;
            }
            // An object of Python has its parameters and modules in dictionaries; one of TorchScript has them itself.
            let (entries, is_object) = match pickle.get(id) {
                Value::Dict(entries) => (entries, false),
                Value::Call {
                    function,
                    state: Some(state),
                    ..
                } => {
                    let script = b"__torch__";
                    let class = pickle.global(*function);
                    let is_script = class.is_some_and(|(module, _)| module.starts_with(script));
                    match pickle.get(*state) {
                        Value::Dict(entries) => (entries, !is_script),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            for (key, child) in entries {
                let left = entries_left.checked_sub(1);
                entries_left = left.ok_or_else(|| format!("it has too many modules; {REMEDY}"))?;
                let path = match name(pickle, *key) {
                    Some("_parameters" | "_buffers" | "_modules") if is_object => path.clone(),
                    Some(name) if !is_object && path.is_empty() => name.to_owned(),
                    Some(name) if !is_object => format!("{path}.{name}"),
                    _ => continue,
                };
                if path.len() <= MAX_NAME {
                    unread.push((path, *child));
                }
            }
        }
        match tensors.is_empty() {
            true => Err(format!("it has no state_dict; {REMEDY}")),
            false => Ok(tensors),
        }
    }

    /// The arguments that a tensor is made from: its storage, the offset of its first element, its shape and its strides.
    fn tensor(&self, id: Id) -> Option<[Id; 4]> {
        let pickle = &self.pickle;
        let call = |id| {
            let call = pickle.call(id)?;
            Some((call.function, call.arguments))
        };
        let (mut function, mut arguments) = call(id)?;
        // A parameter, or a tensor with attributes, is made from a tensor.
        for _ in 0..4 {
            match pickle.global(function)? {
                (b"torch._utils", b"_rebuild_tensor_v2" | b"_rebuild_tensor") => {
                    return arguments.first_chunk().copied();
                }
                (b"torch._utils", b"_rebuild_parameter" | b"_rebuild_parameter_with_state") => {
                    (function, arguments) = call(*arguments.first()?)?;
                }
                (b"torch._tensor", b"_rebuild_from_type_v2") => {
                    function = *arguments.first()?;
                    arguments = pickle.tuple(*arguments.get(2)?)?;
                }
                _ => return None,
            }
        }
        None
    }

    fn view(&self, id: Id) -> Result<View<'a>, String> {
        let pickle = &self.pickle;
        let not_readable = || "is not a tensor that can be read".to_owned();
        let [storage, offset, shape, strides] = self.tensor(id).ok_or_else(not_readable)?;
        let number = |id: &Id| match pickle.get(*id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        };
        let numbers = |id| -> Option<Vec<_>> {
            let tuple = pickle.tuple(id)?;
            if tuple.len() > MAX_DIMENSIONS {
                return None;
            }
            tuple.iter().map(number).collect()
        };
        let storage = match pickle.get(storage) {
            Value::Persistent(id) => Storage::new(pickle, *id),
            _ => None,
        };
        let arguments = (storage, number(&offset), numbers(shape), numbers(strides));
        let (Some(storage), Some(offset), Some(shape), Some(strides)) = arguments else {
            return Err(not_readable());
        };
        let bytes = self.storages.get(storage.key).copied().unwrap_or_default();
        let view = View::strided(storage.element_type(), shape, strides, offset, bytes);
        view.ok_or_else(|| "has values that the file does not have".to_owned())
    }
}

/// The storages that values of a pickle refer to.
fn storages<'p, 'a>(pickle: &'p Pickle<'a>) -> impl Iterator<Item = Storage<'a>> + use<'p, 'a> {
    pickle.values().iter().filter_map(|value| match value {
        Value::Persistent(id) => Storage::new(pickle, *id),
        _ => None,
    })
}

/// A string that is not too long for a name.
fn name<'a>(pickle: &Pickle<'a>, id: Id) -> Option<&'a str> {
    pickle.str(id).filter(|name| name.len() <= MAX_NAME)
}

impl<'a> Storage<'a> {
    /// From its description: `("storage", class, key, location, elements)`, with `None` or a part of it in older files.
    fn new(pickle: &Pickle<'a>, description: Id) -> Option<Self> {
        let (kind, class, key, part) = match *pickle.tuple(description)? {
            [kind, class, key, _, _] => (kind, class, key, None),
            [kind, class, key, _, _, part] => (kind, class, key, Some(part)),
            _ => return None,
        };
        let is_whole = part.is_none_or(|part| *pickle.get(part) == Value::None);
        let (_, class) = pickle.global(class)?;
        let key = name(pickle, key)?;
        (pickle.str(kind) == Some("storage") && is_whole).then_some(Self { class, key })
    }

    fn element_type(&self) -> ElementType {
        match self.class {
            b"HalfStorage" => Ok(Float::F16),
            b"BFloat16Storage" => Ok(Float::BF16),
            b"FloatStorage" => Ok(Float::F32),
            b"DoubleStorage" => Ok(Float::F64),
            class => Err(String::from_utf8_lossy(&class[..class.len().min(MAX_NAME)]).into_owned()),
        }
    }

    /// Bytes of an element; `None` for a class that PyTorch did not have before 1.6.
    fn element_size(&self) -> Option<usize> {
        match self.class {
            b"ByteStorage" | b"CharStorage" | b"BoolStorage" => Some(1),
            b"HalfStorage" | b"BFloat16Storage" | b"ShortStorage" => Some(2),
            b"FloatStorage" | b"IntStorage" => Some(4),
            b"DoubleStorage" | b"LongStorage" | b"ComplexFloatStorage" => Some(8),
            b"ComplexDoubleStorage" => Some(16),
            _ => None,
        }
    }
}

/// A zip archive whose entries have the names of a folder before theirs.
struct Archive<'a> {
    folder: Vec<u8>,
    zip: ZipArchive<Cursor<&'a [u8]>>,
    bytes: &'a [u8],
    /// How many bytes entries can still have: more have those that overlap, which would take any time to read.
    unread: u64,
}

impl<'a> Archive<'a> {
    /// The bytes of an entry, which are not compressed, after their checksum was compared.
    fn entry(&mut self, name: &str) -> Result<Option<&'a [u8]>, String> {
        let name = [&self.folder, name.as_bytes()].concat();
        let Some(index) = self.zip.index_for_name_raw(&name) else {
            return Ok(None);
        };
        let method = self
            .zip
            .by_index_data(index)
            .map_err(damaged)?
            .compression();
        if method != CompressionMethod::Stored {
            return Err("it is compressed, which torch.save does not do; save it again".to_owned());
        }
        let mut entry = self.zip.by_index(index).map_err(damaged)?;
        let size = entry.compressed_size();
        let left = self.unread.checked_sub(size);
        self.unread = left.ok_or_else(|| damaged("entries overlap"))?;
        // The end of the entry compares its checksum.
        io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        let start = entry
            .data_start()
            .and_then(|start| usize::try_from(start).ok());
        let end = start
            .zip(usize::try_from(size).ok())
            .and_then(|(start, size)| start.checked_add(size));
        let bytes = start
            .zip(end)
            .and_then(|(start, end)| self.bytes.get(start..end));
        bytes
            .map(Some)
            .ok_or_else(|| damaged("an entry is cut off"))
    }
}
