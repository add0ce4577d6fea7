//! Reads Python's pickles of protocols 2 to 5 as data. Nothing is imported or called: a function is a name, and a call is
//! the name with its arguments.
//!
//! It is for bytes from anywhere. Memory and time are bounded by the number of opcodes; lengths in the file allocate
//! nothing, because strings are slices of it; values refer to each other by index, so that nothing recurses and a value
//! that is referred to often is not copied.
//!
//! Source of the opcodes: `Lib/pickletools.py` of Python.

use std::collections::HashMap;

/// The most opcodes of a pickle. It bounds the memory for values to about 100 MiB.
const MAX_OPCODES: usize = 1 << 20;

/// Why bytes are not a pickle that can be read. Messages continue a sentence about the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end before the pickle does.
    #[error("it ends within a pickle")]
    Truncated,
    /// An opcode that is not read, such as most of protocol 0, or none.
    #[error("its pickle has the unknown opcode {opcode:#04x} at byte {at}")]
    Unknown {
        /// The opcode.
        opcode: u8,
        /// Its position in the pickle.
        at: usize,
    },
    /// An opcode whose operands are missing or wrong.
    #[error("the opcode {opcode:#04x} at byte {at} of its pickle has missing or wrong operands")]
    Unfit {
        /// The opcode.
        opcode: u8,
        /// Its position in the pickle.
        at: usize,
    },
    /// More opcodes than are read.
    #[error("its pickle has more than {MAX_OPCODES} opcodes")]
    TooLong,
}

/// The index of a value in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(u32);

/// A value, which refers to others by [`Id`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number, or an integer that needs more than 64 bits.
    OtherNumber,
    /// A `str` in UTF-8, `bytes`, or a `str` of Python 2.
    String(&'a [u8]),
    /// A list or set.
    List(Vec<Id>),
    /// A tuple or frozen set.
    Tuple(Vec<Id>),
    /// Keys and values of a `dict`, `OrderedDict` or `defaultdict`, in order; of equal keys the last counts.
    Dict(Vec<(Id, Id)>),
    /// A class or function.
    Global {
        /// The module that has it.
        module: &'a [u8],
        /// Its name in the module.
        name: &'a [u8],
    },
    /// What a function or class returns.
    Call {
        /// The function or class.
        function: Id,
        /// The tuple of its arguments.
        arguments: Id,
        /// The state that the object is given afterwards.
        state: Option<Id>,
    },
    /// Something outside the pickle, which this value describes.
    Persistent(Id),
}

/// How a value is made.
#[derive(Clone, Copy, Debug)]
pub struct Call<'p> {
    /// The function or class.
    pub function: Id,
    /// Its arguments.
    pub arguments: &'p [Id],
    /// The state that the object is given afterwards.
    pub state: Option<Id>,
}

/// A pickle.
#[derive(Debug)]
pub struct Pickle<'a> {
    /// The value that was pickled.
    pub root: Id,
    /// The bytes of the pickle, after which other data may follow.
    pub length: usize,
    values: Vec<Value<'a>>,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with.
    ///
    /// # Errors
    /// When there is none, or when it is too long.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut machine = Machine {
            bytes,
            position: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            pairs: 0,
        };
        let root = machine.run()?;
        Ok(Self {
            root,
            length: machine.position,
            values: machine.values,
        })
    }

    /// A value of this pickle.
    #[must_use]
    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// All values, in the order in which they were made.
    #[must_use]
    pub fn values(&self) -> &[Value<'a>] {
        &self.values
    }

    /// A string in UTF-8.
    #[must_use]
    pub fn str(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::String(bytes) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The elements of a tuple.
    #[must_use]
    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The value at a key of a dictionary.
    #[must_use]
    pub fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.get(dict) else {
            return None;
        };
        let is_key = |id| *self.get(id) == Value::String(key.as_bytes());
        let mut entries = entries.iter().rev();
        entries.find_map(|(name, value)| is_key(*name).then_some(*value))
    }

    /// How a value is made, if a function or class makes it.
    #[must_use]
    pub fn call(&self, id: Id) -> Option<Call<'_>> {
        match self.get(id) {
            Value::Call {
                function,
                arguments,
                state,
            } => Some(Call {
                function: *function,
                arguments: self.tuple(*arguments)?,
                state: *state,
            }),
            _ => None,
        }
    }

    /// The module and the name of a class or function.
    #[must_use]
    pub fn global(&self, id: Id) -> Option<(&'a [u8], &'a [u8])> {
        match self.get(id) {
            Value::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }
}

/// The stack machine that opcodes are for.
struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// How many pairs were copied out of lists into dictionaries.
    pairs: usize,
}

/// The functions for opcodes return `None` where the stack or the operands are not what the opcode needs.
impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, Error> {
        for _ in 0..MAX_OPCODES {
            let at = self.position;
            let opcode = self.number::<1>()? as u8;
            let unfit = Error::Unfit { opcode, at };
            match opcode {
                b'.' => return self.stack.pop().ok_or(unfit),
                _ => self.step(opcode, at)?.ok_or(unfit)?,
            }
        }
        Err(Error::TooLong)
    }

    /// Executes one opcode.
    fn step(&mut self, opcode: u8, at: usize) -> Result<Option<()>, Error> {
        let value = match opcode {
            // PROTO and FRAME.
            0x80 => return self.number::<1>().map(|_| Some(())),
            0x95 => return self.number::<8>().map(|_| Some(())),
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(Some(()));
            }
            // Within a tuple that contains itself.
            b'0' => return Ok(self.stack.pop().map(drop)),
            b'1' => return Ok(self.pop_marked().map(drop)),
            b'N' => Some(Value::None),
            0x88 => Some(Value::Bool(true)),
            0x89 => Some(Value::Bool(false)),
            b'K' => Some(Value::Int(self.number::<1>()? as i64)),
            b'M' => Some(Value::Int(self.number::<2>()? as i64)),
            // Python 2 writes integers of more than 32 bits as text.
            b'I' => text_integer(self.line()?),
            b'J' => Some(Value::Int(i64::from(self.number::<4>()? as i32))),
            0x8a => Some(integer(self.counted::<1>()?)),
            0x8b => Some(integer(self.counted::<4>()?)),
            b'G' => self.number::<8>().map(|_| Some(Value::OtherNumber))?,
            // Strings, by the bytes of their lengths.
            b'U' | b'C' | 0x8c => Some(Value::String(self.counted::<1>()?)),
            b'T' | b'B' | b'X' => Some(Value::String(self.counted::<4>()?)),
            0x8d | 0x8e | 0x96 => Some(Value::String(self.counted::<8>()?)),
            b']' | 0x8f => Some(Value::List(Vec::new())),
            b'}' => Some(Value::Dict(Vec::new())),
            b')' => Some(Value::Tuple(Vec::new())),
            b't' | 0x91 => self.pop_marked().map(Value::Tuple),
            0x85..=0x87 => self.pop_last(usize::from(opcode - 0x84)).map(Value::Tuple),
            b'c' => Some(Value::Global {
                module: self.line()?,
                name: self.line()?,
            }),
            0x93 => self.pop_global(),
            b'R' | 0x81 => self.pop_call()?,
            0x92 => {
                // Keyword arguments.
                self.stack.pop();
                self.pop_call()?
            }
            b'Q' => self.stack.pop().map(Value::Persistent),
            b'q' => {
                let index = self.number::<1>()?;
                return Ok(self.memoize(index as u32));
            }
            b'r' => {
                let index = self.number::<4>()?;
                return Ok(self.memoize(index as u32));
            }
            0x94 => return Ok(self.memoize(self.memo.len() as u32)),
            b'h' => {
                let index = self.number::<1>()?;
                return Ok(self.recall(index as u32));
            }
            b'j' => {
                let index = self.number::<4>()?;
                return Ok(self.recall(index as u32));
            }
            b'a' => {
                let items = self.pop_last(1);
                return Ok(self.append(items));
            }
            b'e' | 0x90 => {
                let items = self.pop_marked();
                return Ok(self.append(items));
            }
            b's' => {
                let items = self.pop_last(2);
                return Ok(self.set(items));
            }
            b'u' => {
                let items = self.pop_marked();
                return Ok(self.set(items));
            }
            b'b' => return Ok(self.build()),
            _ => return Err(Error::Unknown { opcode, at }),
        };
        Ok(value.map(|value| {
            // No more values than opcodes.
            self.stack.push(Id(self.values.len() as u32));
            self.values.push(value);
        }))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.position..];
        let taken = rest.get(..length).ok_or(Error::Truncated)?;
        self.position += length;
        Ok(taken)
    }

    /// A number of `N` bytes, at most 8, little-endian.
    fn number<const N: usize>(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Bytes after their number, which has `N` bytes.
    fn counted<const N: usize>(&mut self) -> Result<&'a [u8], Error> {
        let length = self.number::<N>()?;
        self.take(usize::try_from(length).map_err(|_| Error::Truncated)?)
    }

    /// The bytes up to the end of the line.
    fn line(&mut self) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(length.ok_or(Error::Truncated)?)?;
        self.position += 1;
        Ok(line)
    }

    fn pop_marked(&mut self) -> Option<Vec<Id>> {
        let start = self.marks.pop()?;
        (start <= self.stack.len()).then(|| self.stack.split_off(start))
    }

    fn pop_last(&mut self, count: usize) -> Option<Vec<Id>> {
        let start = self.stack.len().checked_sub(count)?;
        Some(self.stack.split_off(start))
    }

    fn value(&mut self, id: Id) -> &mut Value<'a> {
        &mut self.values[id.0 as usize]
    }

    fn pop_global(&mut self) -> Option<Value<'a>> {
        let mut string = || match self.stack.pop().map(|id| self.value(id))? {
            Value::String(bytes) => Some(*bytes),
            _ => None,
        };
        let name = string()?;
        Some(Value::Global {
            module: string()?,
            name,
        })
    }

    fn pop_call(&mut self) -> Result<Option<Value<'a>>, Error> {
        let (Some(arguments), Some(function)) = (self.stack.pop(), self.stack.pop()) else {
            return Ok(None);
        };
        Ok(Some(match self.value(function) {
            // Their items follow, but for an `OrderedDict` of Python 2.
            Value::Global {
                module: b"collections",
                name: b"OrderedDict" | b"defaultdict",
            } => Value::Dict(self.pairs(arguments)?),
            _ => Value::Call {
                function,
                arguments,
                state: None,
            },
        }))
    }

    /// The pairs of the list that is the first argument, if that is one. As many calls may have the same list, the pairs are
    /// counted.
    fn pairs(&mut self, arguments: Id) -> Result<Vec<(Id, Id)>, Error> {
        let values = &self.values;
        let items = |id: Id| match &values[id.0 as usize] {
            Value::List(items) | Value::Tuple(items) => items.as_slice(),
            _ => &[],
        };
        let list = items(arguments)
            .first()
            .map_or(&[][..], |list| items(*list));
        self.pairs += list.len();
        if self.pairs > MAX_OPCODES {
            return Err(Error::TooLong);
        }
        let pairs = list.iter().filter_map(|pair| match *items(*pair) {
            [key, value] => Some((key, value)),
            _ => None,
        });
        Ok(pairs.collect())
    }

    fn memoize(&mut self, index: u32) -> Option<()> {
        self.memo.insert(index, *self.stack.last()?);
        Some(())
    }

    fn recall(&mut self, index: u32) -> Option<()> {
        self.stack.push(*self.memo.get(&index)?);
        Some(())
    }

    fn append(&mut self, items: Option<Vec<Id>>) -> Option<()> {
        let mut items = items?;
        let list = *self.stack.last()?;
        match self.value(list) {
            Value::List(list) => list.append(&mut items),
            // An object that is also a list.
            Value::Call { .. } => {}
            _ => return None,
        }
        Some(())
    }

    /// Sets entries; `items` has keys and values in turn.
    fn set(&mut self, items: Option<Vec<Id>>) -> Option<()> {
        let items = items?;
        let (entries, []) = items.as_chunks::<2>() else {
            return None;
        };
        let dict = *self.stack.last()?;
        match self.value(dict) {
            Value::Dict(dict) => dict.extend(entries.iter().map(|[key, value]| (*key, *value))),
            // An object that is also a dictionary.
            Value::Call { .. } => {}
            _ => return None,
        }
        Some(())
    }

    fn build(&mut self) -> Option<()> {
        let new = self.stack.pop()?;
        let object = *self.stack.last()?;
        match self.value(object) {
            Value::Call { state, .. } => *state = Some(new),
            // Attributes of an `OrderedDict`.
            Value::Dict(_) => {}
            _ => return None,
        }
        Some(())
    }
}

/// An integer, or a Boolean with a leading zero, as decimal digits.
fn text_integer<'a>(line: &[u8]) -> Option<Value<'a>> {
    match line {
        b"00" => Some(Value::Bool(false)),
        b"01" => Some(Value::Bool(true)),
        _ => str::from_utf8(line).ok()?.parse().ok().map(Value::Int),
    }
}

/// An integer of any length, little-endian, in two's complement.
fn integer<'a>(bytes: &[u8]) -> Value<'a> {
    let is_negative = bytes.last().is_some_and(|byte| byte >> 7 == 1);
    let mut all = [if is_negative { 0xFF } else { 0 }; 8];
    match all.get_mut(..bytes.len()) {
        Some(start) => {
            start.copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(all))
        }
        None => Value::OtherNumber,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Pickle<'_> {
        /// A value as Python would print it, to a depth.
        fn text(&self, id: Id, depth: u32) -> String {
            if depth == 0 {
                return "...".to_owned();
            }
            let text = |id: &Id| self.text(*id, depth - 1);
            let list = |ids: &[Id]| ids.iter().map(text).collect::<Vec<_>>().join(", ");
            match self.get(id) {
                Value::None => "None".to_owned(),
                Value::Bool(value) => value.to_string(),
                Value::Int(value) => value.to_string(),
                Value::OtherNumber => "number".to_owned(),
                Value::String(bytes) => format!("'{}'", bytes.escape_ascii()),
                Value::List(items) => format!("[{}]", list(items)),
                Value::Tuple(items) => format!("({})", list(items)),
                Value::Dict(entries) => {
                    let entries = entries.iter();
                    let entries =
                        entries.map(|(key, value)| format!("{}: {}", text(key), text(value)));
                    format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
                }
                Value::Global { module, name } => {
                    format!("{}.{}", module.escape_ascii(), name.escape_ascii())
                }
                Value::Call {
                    function,
                    arguments,
                    state,
                } => {
                    let state = state
                        .as_ref()
                        .map_or(String::new(), |state| format!("<{}>", text(state)));
                    format!("{}{}{state}", text(function), text(arguments))
                }
                Value::Persistent(id) => format!("@{}", text(id)),
            }
        }
    }

    fn read(bytes: &[u8]) -> Result<String, Error> {
        let pickle = Pickle::read(bytes)?;
        assert!(pickle.length <= bytes.len());
        Ok(pickle.text(pickle.root, 12))
    }

    /// `pickle.dumps(value, protocol)` for protocols 2 to 5, where these differ, of
    /// `{"a": [1, -2, 300, 70000, 2**40, 2**70, 1.5, None, True], "b": (), "c": (1,), "d": {1}, "e": b"\xff"}` and
    /// `collections.OrderedDict(x=datetime.timedelta(1))`.
    #[test]
    fn what_python_writes_is_read() {
        for (bytes, set, letter) in [
            (&b"\x80\x02}q\0(X\x01\0\0\0aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\0\x8a\x06\0\0\0\0\0\x01\x8a\x09\0\0\0\0\0\0\0\0@G?\xf8\0\0\0\0\0\0N\x88eX\x01\0\0\0bq\x03)X\x01\0\0\0cq\x04K\x01\x85q\x05X\x01\0\0\0dq\x06c__builtin__\nset\nq\x07]q\x08K\x01a\x85q\x09Rq\nX\x01\0\0\0eq\x0bc_codecs\nencode\nq\x0cX\x02\0\0\0\xc3\xbfq\x0dX\x06\0\0\0latin1q\x0e\x86q\x0fRq\x10u."[..], "__builtin__.set([1])", "_codecs.encode('\\xc3\\xbf', 'latin1')"),
            (&b"\x80\x03}q\0(X\x01\0\0\0aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\0\x8a\x06\0\0\0\0\0\x01\x8a\x09\0\0\0\0\0\0\0\0@G?\xf8\0\0\0\0\0\0N\x88eX\x01\0\0\0bq\x03)X\x01\0\0\0cq\x04K\x01\x85q\x05X\x01\0\0\0dq\x06cbuiltins\nset\nq\x07]q\x08K\x01a\x85q\x09Rq\nX\x01\0\0\0eq\x0bC\x01\xffq\x0cu."[..], "builtins.set([1])", "'\\xff'"),
            (&b"\x80\x04\x95Y\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\0\x8a\x06\0\0\0\0\0\x01\x8a\x09\0\0\0\0\0\0\0\0@G?\xf8\0\0\0\0\0\0N\x88e\x8c\x01b\x94)\x8c\x01c\x94K\x01\x85\x94\x8c\x01d\x94\x8f\x94(K\x01\x90\x8c\x01e\x94C\x01\xff\x94u."[..], "[1]", "'\\xff'"),
        ] {
            let expected = format!(
                "{{'a': [1, -2, 300, 70000, 1099511627776, number, number, None, true], 'b': (), 'c': (1), 'd': {set}, 'e': {letter}}}"
            );
            assert_eq!(read(bytes), Ok(expected));
        }
        for bytes in [
            &b"\x80\x02ccollections\nOrderedDict\nq\0)Rq\x01X\x01\0\0\0xq\x02cdatetime\ntimedelta\nq\x03K\x01K\0K\0\x87q\x04Rq\x05s."[..],
            &b"\x80\x04\x95J\0\0\0\0\0\0\0\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94\x8c\x01x\x94\x8c\x08datetime\x94\x8c\x09timedelta\x94\x93\x94K\x01K\0K\0\x87\x94R\x94s."[..],
        ] {
            assert_eq!(read(bytes).unwrap(), "{'x': datetime.timedelta(1, 0, 0)}");
        }
    }

    #[test]
    fn values_of_a_file_are_shared_and_may_contain_themselves() {
        // a = []; a.append(a)
        assert_eq!(read(b"\x80\x02]q\0h\0a.").unwrap().matches('[').count(), 12);
        // An object with a state, and with items of a list and a dictionary.
        assert_eq!(
            read(b"\x80\x02cm\nC\n)\x81(K\x01K\x02e(K\x01K\x02uK\x07b.").unwrap(),
            "m.C()<7>"
        );
        assert_eq!(read(b"\x80\x02K\x01Q.rest").unwrap(), "@1");
        assert_eq!(Pickle::read(b"\x80\x02K\x01Q.rest").unwrap().length, 6);
        // `collections.OrderedDict(x=1)` of Python 2.
        assert_eq!(
            read(b"\x80\x02ccollections\nOrderedDict\n](](U\x01xK\x01ee\x85R.").unwrap(),
            "{'x': 1}"
        );
        // `t = ([],); t[0].append(t)`.
        let recursive = read(b"\x80\x02]q\0h\0\x85q\x01a0h\x01.").unwrap();
        assert!(recursive.starts_with("([(["), "{recursive}");
        // An `int` of 64 bits of Python 2, and Booleans.
        assert_eq!(
            read(b"\x80\x02I140234866358928\nI01\nI00\n\x87.").unwrap(),
            "(140234866358928, true, false)"
        );
        // A long integer, and a `str` of Python 2.
        assert_eq!(
            read(b"\x80\x02\x8a\x02\0\xffU\x01\xff\x86.").unwrap(),
            "(-256, '\\xff')"
        );
    }

    #[test]
    fn damaged_pickles_are_refused() {
        let unfit = |opcode, at| Err(Error::Unfit { opcode, at });
        for (bytes, expected) in [
            (&b""[..], Err(Error::Truncated)),
            (b"\x80", Err(Error::Truncated)),
            (b"\x80\x02", Err(Error::Truncated)),
            // 4 GiB of text, and 16 EiB.
            (b"X\xff\xff\xff\xff", Err(Error::Truncated)),
            (
                b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
                Err(Error::Truncated),
            ),
            (b"cmodule\nname", Err(Error::Truncated)),
            (
                b"F1\n.",
                Err(Error::Unknown {
                    opcode: b'F',
                    at: 0,
                }),
            ),
            (b"Ione\n.", unfit(b'I', 0)),
            (b"0", unfit(b'0', 0)),
            (b".", unfit(b'.', 0)),
            (b"t", unfit(b't', 0)),
            (b"NN(\x86t", unfit(b't', 4)),
            (b"N\x86", unfit(0x86, 1)),
            (b"](Nu", unfit(b'u', 3)),
            (b"}(Nu", unfit(b'u', 3)),
            (b"NNa", unfit(b'a', 2)),
            (b"NNb", unfit(b'b', 2)),
            (b"h\0", unfit(b'h', 0)),
            (b"q\0", unfit(b'q', 0)),
            (b"N\x93", unfit(0x93, 1)),
            (b"R", unfit(b'R', 0)),
        ] {
            assert_eq!(read(bytes), expected, "{}", bytes.escape_ascii());
        }
        // 2,000 dictionaries of the same thousand pairs.
        let list = [
            &b"](U\x01xK\x01tq\0"[..],
            b"a(",
            &b"h\0".repeat(999),
            b"e\x85q\x01ccollections\nOrderedDict\nq\x02",
        ];
        let dicts = b"h\x02h\x01R".repeat(2_000);
        assert_eq!(
            read(&[&list.concat()[..], &dicts, b"."].concat()),
            Err(Error::TooLong)
        );
        // As many lists within each other as fit, and the next.
        let mut nested = vec![b']'; MAX_OPCODES / 2];
        nested.resize(MAX_OPCODES - 1, b'a');
        nested.push(b'.');
        assert!(read(&nested).is_ok());
        nested.insert(0, b'N');
        assert_eq!(read(&nested), Err(Error::TooLong));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4096) })]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        /// Opcodes that need no more bytes, with few values to refer to.
        #[test]
        fn any_opcodes_are_read_or_refused(opcodes in "[()\\]}tRQaeusbNXq\0h\u{1}]{0,200}") {
            let _ = read(&[opcodes.as_bytes(), b"N."].concat());
        }
    }
}
