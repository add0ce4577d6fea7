//! Reads the pickles of CIFAR's Python version: dictionaries of byte strings, numbers, lists and arrays of `uint8`. Python
//! 2 wrote the official files; Python 3 with NumPy 1 or 2 writes the same dictionaries with other opcodes (protocols 2 to
//! 5). Nothing is executed: functions are names here, and any other than NumPy's own for arrays is refused.
//!
//! Source of the opcodes: `Lib/pickletools.py` of Python.

use std::borrow::Cow;
use std::collections::HashMap;

/// The most opcodes that are read: the largest official file has fewer than 300,000. It bounds the memory for values, since
/// an opcode makes at most one; bytes stay where they are in the file.
const MAX_OPCODES: usize = 1 << 20;

/// Why bytes are not such a pickle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// The bytes end before the pickle does.
    #[error("it is incomplete: it ends within the pickle")]
    Truncated,
    /// An opcode that these files do not have.
    #[error("it has the opcode {opcode:#04x} at byte {at}, which CIFAR's files do not have")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Its position.
        at: usize,
    },
    /// It names a function or class that these files do not need.
    #[error("it refers to `{0}`, which CIFAR's files do not need; nothing was executed")]
    Function(String),
    /// An opcode does not fit what is before it.
    #[error("its opcode {opcode:#04x} at byte {at} does not fit what is before it")]
    Inconsistent {
        /// The opcode.
        opcode: u8,
        /// Its position.
        at: usize,
    },
    /// It has more opcodes than any such file.
    #[error("it has more than {MAX_OPCODES} values")]
    TooMany,
    /// The dictionary lacks a key, or has something else there.
    #[error("its `{key}` {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// It is another value.
    #[error("it is not a dictionary")]
    NotADictionary,
}

/// An index into [`Pickle::values`].
type Id = usize;

/// A function or class of these files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    /// `numpy.core.multiarray._reconstruct`: an empty array, whose state follows.
    Reconstruct,
    /// `numpy.core.numeric._frombuffer`: an array of bytes, of protocol 5.
    FromBuffer,
    /// `numpy.ndarray`.
    Ndarray,
    /// `numpy.dtype`.
    Dtype,
    /// `_codecs.encode`: Python 3 writes bytes as text in Latin-1 at protocol 2.
    Encode,
}

#[derive(Clone, Debug)]
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A byte string, or text in UTF-8.
    Bytes(&'a [u8]),
    /// Bytes as text: each is the character of this number.
    Latin1(&'a str),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Function(Function),
    /// The type `uint8`.
    Uint8,
    EmptyArray,
    Array(ArrayState),
}

#[derive(Clone, Debug)]
struct ArrayState {
    shape: Id,
    fortran: bool,
    bytes: Id,
}

/// A matrix of bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Matrix<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Row by row.
    pub(crate) bytes: Cow<'a, [u8]>,
}

/// A dictionary that was pickled.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    entries: Vec<(Id, Id)>,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle. What follows it is ignored, as Python does.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            position: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        let values = machine.values;
        match &values[root] {
            Value::Dict(entries) => Ok(Self {
                entries: entries.clone(),
                values,
            }),
            _ => Err(PickleError::NotADictionary),
        }
    }

    /// The integers of the list at a key.
    pub(crate) fn integers(&self, key: &'static str) -> Result<Vec<i64>, PickleError> {
        let integer = |id: &Id| match self.values[*id] {
            Value::Int(value) => Some(value),
            _ => None,
        };
        let list: Option<_> = self.list(key)?.iter().map(integer).collect();
        list.ok_or_else(|| other(key, "is not a list of integers"))
    }

    /// The strings of the list at a key.
    pub(crate) fn strings(&self, key: &'static str) -> Result<Vec<&'a str>, PickleError> {
        let list: Option<_> = self.list(key)?.iter().map(|id| self.text(*id)).collect();
        list.ok_or_else(|| other(key, "is not a list of strings"))
    }

    /// The matrix at a key.
    pub(crate) fn matrix(&self, key: &'static str) -> Result<Matrix<'a>, PickleError> {
        let Value::Array(array) = self.value(key)? else {
            return Err(other(key, "is not an array of NumPy"));
        };
        let size = |id: Id| match self.values[id] {
            Value::Int(value) => usize::try_from(value).ok(),
            _ => None,
        };
        let (rows, columns) = match &self.values[array.shape] {
            Value::Tuple(shape) if shape.len() == 2 => {
                let sizes = size(shape[0]).zip(size(shape[1]));
                sizes.ok_or_else(|| other(key, "has a shape that is not two numbers"))?
            }
            _ => return Err(other(key, "has other than two dimensions")),
        };
        let bytes: Cow<[u8]> = match self.values[array.bytes] {
            Value::Bytes(bytes) => bytes.into(),
            Value::Latin1(text) => {
                let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
                bytes
                    .map_err(|_| other(key, "has characters that are not bytes"))?
                    .into()
            }
            _ => return Err(other(key, "has no bytes")),
        };
        if rows.checked_mul(columns) != Some(bytes.len()) {
            let problem = format!(
                "has {} bytes, which are not {rows} rows of {columns}",
                bytes.len()
            );
            return Err(other(key, &problem));
        }
        let bytes = match array.fortran {
            // Column by column.
            true => {
                let row = |row| (0..columns).map(move |column| (column, row));
                let places = (0..rows).flat_map(row);
                places
                    .map(|(column, row)| bytes[column * rows + row])
                    .collect()
            }
            false => bytes,
        };
        Ok(Matrix {
            rows,
            columns,
            bytes,
        })
    }

    fn text(&self, id: Id) -> Option<&'a str> {
        match self.values[id] {
            Value::Bytes(bytes) => str::from_utf8(bytes).ok(),
            Value::Latin1(text) => Some(text),
            _ => None,
        }
    }

    fn list(&self, key: &'static str) -> Result<&[Id], PickleError> {
        match self.value(key)? {
            Value::List(list) | Value::Tuple(list) => Ok(list),
            _ => Err(other(key, "is not a list")),
        }
    }

    fn value(&self, key: &'static str) -> Result<&Value<'a>, PickleError> {
        // As in Python, the last one counts.
        let mut entries = self.entries.iter().rev();
        let entry = entries.find(|(name, _)| self.text(*name) == Some(key));
        let (_, value) = entry.ok_or_else(|| other(key, "is missing"))?;
        Ok(&self.values[*value])
    }
}

fn other(key: &'static str, problem: &str) -> PickleError {
    PickleError::Key {
        key,
        problem: problem.to_owned(),
    }
}

/// The stack machine that opcodes are for.
struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    /// All values. The stack, the memo and other values refer to them, so that nothing is copied.
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

/// A value, or `None` where the stack or the operands are not as they have to be.
type Fits<T> = Option<T>;

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, PickleError> {
        for _ in 0..MAX_OPCODES {
            let at = self.position;
            let opcode = self.number::<1>()? as u8;
            if opcode == b'.' {
                let root = self.stack.pop();
                return root.ok_or(PickleError::Inconsistent { opcode, at });
            }
            let fits = self.step(opcode, at)?;
            fits.ok_or(PickleError::Inconsistent { opcode, at })?;
        }
        Err(PickleError::TooMany)
    }

    /// Follows one opcode.
    fn step(&mut self, opcode: u8, at: usize) -> Result<Fits<()>, PickleError> {
        let value = match opcode {
            // PROTO and FRAME say how the rest is written.
            0x80 => {
                self.number::<1>()?;
                return Ok(Some(()));
            }
            0x95 => {
                self.number::<8>()?;
                return Ok(Some(()));
            }
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(Some(()));
            }
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i64::from(self.number::<4>()? as u32 as i32)),
            b'K' => Value::Int(self.number::<1>()? as i64),
            b'M' => Value::Int(self.number::<2>()? as i64),
            0x8a => {
                let length = self.number::<1>()? as usize;
                let Some(value) = long(self.take(length)?) else {
                    return Ok(None);
                };
                Value::Int(value)
            }
            // Byte strings and text, with lengths of 1, 4 and 8 bytes.
            b'U' | 0x8c | b'C' => Value::Bytes(self.counted::<1>()?),
            b'T' | b'X' | b'B' => Value::Bytes(self.counted::<4>()?),
            0x8d | 0x8e | 0x96 => Value::Bytes(self.counted::<8>()?),
            b'}' => Value::Dict(Vec::new()),
            b']' => Value::List(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            b't' => {
                let Some(items) = self.marked() else {
                    return Ok(None);
                };
                Value::Tuple(items)
            }
            0x85..=0x87 => {
                let Some(start) = self.stack.len().checked_sub(usize::from(opcode - 0x84)) else {
                    return Ok(None);
                };
                Value::Tuple(self.stack.split_off(start))
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Function(function(module, name)?)
            }
            0x93 => {
                let Some((module, name)) = self.pop_two_strings() else {
                    return Ok(None);
                };
                Value::Function(function(module, name)?)
            }
            b'R' => {
                let Some(result) = self.call() else {
                    return Ok(None);
                };
                result
            }
            b'q' => {
                let index = self.number::<1>()? as u32;
                return Ok(self.memoize(index));
            }
            b'r' => {
                let index = self.number::<4>()? as u32;
                return Ok(self.memoize(index));
            }
            0x94 => return Ok(self.memoize(self.memo.len() as u32)),
            b'h' => {
                let index = self.number::<1>()? as u32;
                return Ok(self.recall(index));
            }
            b'j' => {
                let index = self.number::<4>()? as u32;
                return Ok(self.recall(index));
            }
            b'a' | b'e' => return Ok(self.append(opcode == b'e')),
            b's' | b'u' => return Ok(self.set(opcode == b'u')),
            b'b' => return Ok(self.build()),
            _ => return Err(PickleError::Opcode { opcode, at }),
        };
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(Some(()))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.position..];
        let taken = rest.get(..length).ok_or(PickleError::Truncated)?;
        self.position += length;
        Ok(taken)
    }

    /// A number of `N` bytes, at most 8, little-endian.
    fn number<const N: usize>(&mut self) -> Result<u64, PickleError> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Bytes after their number, which has `N` bytes.
    fn counted<const N: usize>(&mut self) -> Result<&'a [u8], PickleError> {
        let length = self.number::<N>()?;
        self.take(usize::try_from(length).map_err(|_| PickleError::Truncated)?)
    }

    /// The bytes up to the end of the line.
    fn line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(length.ok_or(PickleError::Truncated)?)?;
        self.position += 1;
        Ok(line)
    }

    /// Takes what is above the last mark.
    fn marked(&mut self) -> Fits<Vec<Id>> {
        let start = self.marks.pop()?;
        (start <= self.stack.len()).then(|| self.stack.split_off(start))
    }

    fn pop(&mut self) -> Fits<&Value<'a>> {
        let id = self.stack.pop()?;
        Some(&self.values[id])
    }

    fn pop_two_strings(&mut self) -> Fits<(&'a [u8], &'a [u8])> {
        let mut string = || match self.pop()? {
            Value::Bytes(bytes) => Some(*bytes),
            _ => None,
        };
        let second = string()?;
        Some((string()?, second))
    }

    fn memoize(&mut self, index: u32) -> Fits<()> {
        self.memo.insert(index, *self.stack.last()?);
        Some(())
    }

    fn recall(&mut self, index: u32) -> Fits<()> {
        self.stack.push(*self.memo.get(&index)?);
        Some(())
    }

    /// Appends the top of the stack, or what is above the mark, to the list below.
    fn append(&mut self, several: bool) -> Fits<()> {
        let mut items = match several {
            true => self.marked()?,
            false => vec![self.stack.pop()?],
        };
        match &mut self.values[*self.stack.last()?] {
            Value::List(list) => list.append(&mut items),
            _ => return None,
        }
        Some(())
    }

    /// Sets one entry, or those above the mark, in the dictionary below.
    fn set(&mut self, several: bool) -> Fits<()> {
        let items = match several {
            true => self.marked()?,
            false => {
                let start = self.stack.len().checked_sub(2)?;
                self.stack.split_off(start)
            }
        };
        let (pairs, []) = items.as_chunks::<2>() else {
            return None;
        };
        match &mut self.values[*self.stack.last()?] {
            Value::Dict(entries) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return None,
        }
        Some(())
    }

    /// What a function returns for the arguments above it.
    fn call(&mut self) -> Fits<Value<'a>> {
        let arguments = self.stack.pop()?;
        let function = self.stack.pop()?;
        let (Value::Tuple(arguments), Value::Function(function)) =
            (&self.values[arguments], &self.values[function])
        else {
            return None;
        };
        let argument = |index: usize| Some(&self.values[*arguments.get(index)?]);
        Some(match function {
            Function::Reconstruct => Value::EmptyArray,
            Function::Dtype => match argument(0)? {
                Value::Bytes(b"u1" | b"|u1") => Value::Uint8,
                _ => return None,
            },
            Function::Encode => match (argument(0)?, argument(1)?) {
                (Value::Bytes(text), Value::Bytes(b"latin1")) => {
                    Value::Latin1(str::from_utf8(text).ok()?)
                }
                _ => return None,
            },
            // (buffer, dtype, shape, order)
            Function::FromBuffer => match (argument(1)?, argument(3)?) {
                (Value::Uint8, Value::Bytes(order @ (b"C" | b"F"))) => Value::Array(ArrayState {
                    shape: *arguments.get(2)?,
                    fortran: *order == b"F",
                    bytes: *arguments.first()?,
                }),
                _ => return None,
            },
            Function::Ndarray => return None,
        })
    }

    /// Gives the object below the top of the stack its state.
    fn build(&mut self) -> Fits<()> {
        let state = self.stack.pop()?;
        let object = *self.stack.last()?;
        let Value::Tuple(state) = &self.values[state] else {
            return None;
        };
        match self.values[object] {
            // Byte order and alignment, which a byte does not have.
            Value::Uint8 => {}
            // (version, shape, dtype, is_fortran, bytes)
            Value::EmptyArray => {
                let [_, shape, dtype, fortran, bytes] = state[..] else {
                    return None;
                };
                let (Value::Uint8, Value::Bool(fortran)) =
                    (&self.values[dtype], &self.values[fortran])
                else {
                    return None;
                };
                self.values[object] = Value::Array(ArrayState {
                    shape,
                    fortran: *fortran,
                    bytes,
                });
            }
            _ => return None,
        }
        Some(())
    }
}

/// An integer of any length, little-endian, in two's complement.
fn long(bytes: &[u8]) -> Fits<i64> {
    let negative = bytes.last().is_some_and(|byte| byte >> 7 == 1);
    let mut all = [if negative { 0xFF } else { 0 }; 8];
    all.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(all))
}

fn function(module: &[u8], name: &[u8]) -> Result<Function, PickleError> {
    Ok(match (module, name) {
        (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => {
            Function::Reconstruct
        }
        (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => Function::FromBuffer,
        (b"numpy", b"ndarray") => Function::Ndarray,
        (b"numpy", b"dtype") => Function::Dtype,
        (b"_codecs", b"encode") => Function::Encode,
        _ => {
            let name: String = [module, b".", name]
                .concat()
                .escape_ascii()
                .take(80)
                .map(char::from)
                .collect();
            return Err(PickleError::Function(name));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made by these lines of Python, with Python 2.7 and NumPy 1.16, Python 3.9 and NumPy 1, Python 3.11 and NumPy 2:
    ///
    /// ```python
    /// a = np.arange(6, dtype=np.uint8).reshape(2, 3) + 250
    /// d = {"data": a, "labels": [1, 300], "batch_label": "b", "filenames": ["x.png", "y.png"]}
    /// pickle.dump(d, open("python2.pickle", "wb"), 2)
    /// for p in 2, 3, 4, 5:
    ///     pickle.dump(d, open("numpy%s-protocol%d.pickle" % (v, p), "wb"), p)
    /// pickle.dump(dict(d, data=np.asfortranarray(a)), open("numpy2-fortran.pickle", "wb"), 4)
    /// pickle.dump(dict(d, data=np.asfortranarray(a)), open("numpy2-fortran5.pickle", "wb"), 5)
    /// pickle.dump({k.encode(): v for k, v in d.items()}, open("numpy2-bytes-keys.pickle", "wb"), 2)
    /// ```
    const FILES: [(&str, &[u8]); 9] = [
        (
            "Python 2",
            include_bytes!("../tests/fixtures/python2.pickle"),
        ),
        (
            "NumPy 1, protocol 2",
            include_bytes!("../tests/fixtures/numpy1-protocol2.pickle"),
        ),
        (
            "NumPy 1, protocol 5",
            include_bytes!("../tests/fixtures/numpy1-protocol5.pickle"),
        ),
        (
            "NumPy 2, protocol 2",
            include_bytes!("../tests/fixtures/numpy2-protocol2.pickle"),
        ),
        (
            "NumPy 2, protocol 3",
            include_bytes!("../tests/fixtures/numpy2-protocol3.pickle"),
        ),
        (
            "NumPy 2, protocol 5",
            include_bytes!("../tests/fixtures/numpy2-protocol5.pickle"),
        ),
        (
            "columns first",
            include_bytes!("../tests/fixtures/numpy2-fortran.pickle"),
        ),
        (
            "columns first, protocol 5",
            include_bytes!("../tests/fixtures/numpy2-fortran5.pickle"),
        ),
        (
            "bytes as keys",
            include_bytes!("../tests/fixtures/numpy2-bytes-keys.pickle"),
        ),
    ];

    #[test]
    fn every_version_of_python_is_read() {
        for (name, bytes) in FILES {
            let pickle = Pickle::read(bytes).unwrap();
            let matrix = pickle.matrix("data").unwrap();
            assert_eq!((matrix.rows, matrix.columns), (2, 3), "{name}");
            assert_eq!(*matrix.bytes, [250, 251, 252, 253, 254, 255], "{name}");
            assert_eq!(pickle.integers("labels").unwrap(), [1, 300], "{name}");
            assert_eq!(
                pickle.strings("filenames").unwrap(),
                ["x.png", "y.png"],
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let read = |bytes| Pickle::read(bytes).unwrap_err();
        assert_eq!(read(b""), PickleError::Truncated);
        assert_eq!(read(b"\x80\x02]."), PickleError::NotADictionary);
        assert_eq!(
            read(b"."),
            PickleError::Inconsistent {
                opcode: b'.',
                at: 0
            }
        );
        // What a pickle that runs a command has.
        let error = read(b"cposix\nsystem\n(S'true'\ntR.");
        assert_eq!(error, PickleError::Function("posix.system".to_owned()));
        assert_eq!(
            read(b"}I1\n."),
            PickleError::Opcode {
                opcode: b'I',
                at: 1
            }
        );
        assert_eq!(read(&vec![b'N'; MAX_OPCODES + 1]), PickleError::TooMany);
        let pickle = Pickle::read(FILES[0].1).unwrap();
        for (error, expected) in [
            (
                pickle.matrix("image").unwrap_err(),
                "its `image` is missing",
            ),
            (
                pickle.matrix("labels").unwrap_err(),
                "its `labels` is not an array of NumPy",
            ),
            (
                pickle.integers("data").unwrap_err(),
                "its `data` is not a list",
            ),
            (
                pickle.integers("filenames").unwrap_err(),
                "its `filenames` is not a list of integers",
            ),
            (
                pickle.strings("labels").unwrap_err(),
                "its `labels` is not a list of strings",
            ),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn numbers_have_their_signs() {
        assert_eq!(long(b""), Some(0));
        assert_eq!(long(b"\xff\x00"), Some(255));
        assert_eq!(long(b"\xff"), Some(-1));
        assert_eq!(long(b"\0\x80"), Some(-32768));
        assert_eq!(long(&[1; 9]), None);
    }

    /// Reads bytes as whatever they may be.
    fn read_all(bytes: &[u8]) {
        if let Ok(pickle) = Pickle::read(bytes) {
            if let Ok(matrix) = pickle.matrix("data") {
                assert_eq!(matrix.rows * matrix.columns, matrix.bytes.len());
            }
            let _ = pickle.integers("labels");
            let _ = pickle.strings("filenames");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            read_all(&bytes);
        }

        #[test]
        fn changed_files_are_read_or_refused(
            file in 0..FILES.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            length in any::<prop::sample::Index>(),
            is_cut: bool,
        ) {
            let mut bytes = FILES[file].1.to_vec();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if is_cut {
                bytes.truncate(length.index(bytes.len()));
            }
            read_all(&bytes);
        }
    }
}
