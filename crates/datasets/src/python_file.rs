//! The files of CIFAR's Python version: pickled dictionaries of numbers, strings, lists and arrays of `uint8`. Python 2
//! wrote the official ones; Python 3 with NumPy 1 or 2 writes the same dictionaries in other ways (protocols 2 to 5).

use pickle::{Id, Pickle, Value};
use std::borrow::Cow;

/// The most bytes of a name: a file may refer to a string any number of times.
const MAX_NAME: usize = 256;

/// Why bytes are not such a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PythonFileError {
    /// They are not a pickle.
    #[error(transparent)]
    Pickle(#[from] pickle::Error),
    /// They are another value.
    #[error("it is not a dictionary")]
    NotADictionary,
    /// The dictionary lacks a key, or has something else there.
    #[error("its `{key}` {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

fn other(key: &'static str, problem: &str) -> PythonFileError {
    PythonFileError::Key {
        key,
        problem: problem.to_owned(),
    }
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
pub(crate) struct PythonFile<'a>(Pickle<'a>);

impl<'a> PythonFile<'a> {
    /// Reads a pickle. What follows it is ignored, as Python does.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, PythonFileError> {
        let pickle = Pickle::read(bytes)?;
        match pickle.get(pickle.root) {
            Value::Dict(_) => Ok(Self(pickle)),
            _ => Err(PythonFileError::NotADictionary),
        }
    }

    /// The integers of the list at a key.
    pub(crate) fn integers(&self, key: &'static str) -> Result<Vec<i64>, PythonFileError> {
        let list = self.list(key)?.iter().map(|id| self.integer(*id));
        let list: Option<_> = list.collect();
        list.ok_or_else(|| other(key, "is not a list of integers"))
    }

    /// The strings of the list at a key.
    pub(crate) fn strings(&self, key: &'static str) -> Result<Vec<String>, PythonFileError> {
        let text = |id: &Id| String::from_utf8(self.bytes(*id, MAX_NAME)?.into_owned()).ok();
        let list: Option<_> = self.list(key)?.iter().map(text).collect();
        list.ok_or_else(|| other(key, "is not a list of strings"))
    }

    /// The matrix at a key.
    pub(crate) fn matrix(&self, key: &'static str) -> Result<Matrix<'a>, PythonFileError> {
        let array = self.array(self.value(key)?);
        let array = array.ok_or_else(|| other(key, "is not an array of bytes"))?;
        let size = |id| usize::try_from(self.integer(id)?).ok();
        let (rows, columns) = match self.0.tuple(array.shape) {
            Some([rows, columns]) => {
                let sizes = size(*rows).zip(size(*columns));
                sizes.ok_or_else(|| other(key, "has a shape that is not two numbers"))?
            }
            _ => return Err(other(key, "has other than two dimensions")),
        };
        let bytes = self.bytes(array.content, usize::MAX);
        let bytes = bytes.ok_or_else(|| other(key, "has no bytes"))?;
        if rows.checked_mul(columns) != Some(bytes.len()) {
            let problem = format!(
                "has {} bytes, which are not {rows} rows of {columns}",
                bytes.len()
            );
            return Err(other(key, &problem));
        }
        // Without bytes there may be any number of rows.
        let bytes = match array.column_by_column && !bytes.is_empty() {
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

    fn value(&self, key: &'static str) -> Result<Id, PythonFileError> {
        let Value::Dict(entries) = self.0.get(self.0.root) else {
            return Err(PythonFileError::NotADictionary);
        };
        // As in Python, the last one counts.
        let mut entries = entries.iter().rev();
        let is_key = |id| {
            let name = self.bytes(id, MAX_NAME);
            name.is_some_and(|name| *name == *key.as_bytes())
        };
        let entry = entries.find(|(name, _)| is_key(*name));
        let (_, value) = entry.ok_or_else(|| other(key, "is missing"))?;
        Ok(*value)
    }

    fn list(&self, key: &'static str) -> Result<&[Id], PythonFileError> {
        match self.0.get(self.value(key)?) {
            Value::List(list) | Value::Tuple(list) => Ok(list),
            _ => Err(other(key, "is not a list")),
        }
    }

    fn integer(&self, id: Id) -> Option<i64> {
        match self.0.get(id) {
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The bytes of a string of at most `most` bytes. At protocol 2, Python 3 writes bytes as text, each as the character
    /// of this number.
    fn bytes(&self, id: Id, most: usize) -> Option<Cow<'a, [u8]>> {
        if let Value::String(bytes) = self.0.get(id) {
            return (bytes.len() <= most).then_some(Cow::Borrowed(bytes));
        }
        let call = self.0.call(id)?;
        match (self.0.global(call.function)?, call.arguments) {
            ((b"_codecs", b"encode"), [text, encoding])
                if self.0.str(*encoding) == Some("latin1") =>
            {
                // A byte is at most two bytes of text.
                let text = self.0.str(*text);
                let characters = text.filter(|text| text.len() / 2 <= most)?.chars();
                let bytes: Result<Vec<u8>, _> = characters.map(u8::try_from).collect();
                Some(Cow::Owned(bytes.ok()?))
            }
            _ => None,
        }
    }

    fn array(&self, id: Id) -> Option<Array> {
        let call = self.0.call(id)?;
        // NumPy 2 calls `numpy.core` `numpy._core`.
        match self.0.global(call.function)? {
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => {
                let [_version, shape, dtype, order, content] = *self.0.tuple(call.state?)? else {
                    return None;
                };
                self.is_uint8(dtype).then_some(Array {
                    shape,
                    column_by_column: *self.0.get(order) == Value::Bool(true),
                    content,
                })
            }
            // At protocol 5.
            (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => {
                let [content, dtype, shape, order] = *call.arguments else {
                    return None;
                };
                self.is_uint8(dtype).then_some(Array {
                    shape,
                    column_by_column: self.0.str(order) == Some("F"),
                    content,
                })
            }
            _ => None,
        }
    }

    fn is_uint8(&self, dtype: Id) -> bool {
        self.0.call(dtype).is_some_and(|call| {
            let names = ["u1", "|u1"].map(Some);
            self.0.global(call.function) == Some((b"numpy", b"dtype"))
                && (call.arguments.first()).is_some_and(|name| names.contains(&self.0.str(*name)))
        })
    }
}

/// An array of `uint8`.
struct Array {
    shape: Id,
    column_by_column: bool,
    content: Id,
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
            let file = PythonFile::read(bytes).unwrap();
            let matrix = file.matrix("data").unwrap();
            assert_eq!((matrix.rows, matrix.columns), (2, 3), "{name}");
            assert_eq!(*matrix.bytes, [250, 251, 252, 253, 254, 255], "{name}");
            assert_eq!(file.integers("labels").unwrap(), [1, 300], "{name}");
            assert_eq!(
                file.strings("filenames").unwrap(),
                ["x.png", "y.png"],
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let read = |bytes| PythonFile::read(bytes).unwrap_err();
        assert_eq!(read(b""), pickle::Error::Truncated.into());
        assert_eq!(read(b"\x80\x02]."), PythonFileError::NotADictionary);
        // It would call `os.system`.
        let error = read(b"\x80\x02cposix\nsystem\nU\x04true\x85R.");
        assert_eq!(error, PythonFileError::NotADictionary);
        let file = PythonFile::read(FILES[0].1).unwrap();
        for (error, expected) in [
            (file.matrix("image").unwrap_err(), "its `image` is missing"),
            (
                file.matrix("labels").unwrap_err(),
                "its `labels` is not an array of bytes",
            ),
            (
                file.integers("data").unwrap_err(),
                "its `data` is not a list",
            ),
            (
                file.integers("filenames").unwrap_err(),
                "its `filenames` is not a list of integers",
            ),
            (
                file.strings("labels").unwrap_err(),
                "its `labels` is not a list of strings",
            ),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }

    /// `np.empty((2**62, 0), np.uint8)`, said to be stored column by column.
    #[test]
    fn rows_without_columns_take_no_time() {
        let bytes = b"\x80\x02}X\x04\0\0\0datacnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R\
            (K\x01\x8a\x08\0\0\0\0\0\0\0@K\0\x86cnumpy\ndtype\nU\x02u1\x89\x88\x87R\
            (K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x88U\0tbs.";
        let matrix = PythonFile::read(bytes).unwrap();
        let matrix = matrix.matrix("data").unwrap();
        assert_eq!((matrix.rows, matrix.columns), (1 << 62, 0));
    }

    /// Reads bytes as whatever they may be.
    fn read_all(bytes: &[u8]) {
        if let Ok(file) = PythonFile::read(bytes) {
            if let Ok(matrix) = file.matrix("data") {
                assert_eq!(matrix.rows * matrix.columns, matrix.bytes.len());
            }
            let _ = file.integers("labels");
            let _ = file.strings("filenames");
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
