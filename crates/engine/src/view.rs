//! A tensor in the bytes of a file.

use half::{bf16, f16};

/// A floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F16,
    BF16,
    F32,
    F64,
}

impl Float {
    fn size_in_bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// The type of elements, or the name of one that is not a floating-point type.
pub(crate) type ElementType = Result<Float, String>;

/// A tensor whose elements are within the bytes of a file.
pub(crate) struct View<'a> {
    element: ElementType,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    /// From the first element on; none where the type is not a floating-point type.
    bytes: &'a [u8],
}

/// Tensors by name.
pub(crate) type NamedViews<'a> = Vec<(String, View<'a>)>;

impl<'a> View<'a> {
    /// A contiguous tensor; `None` where it does not have these bytes.
    pub(crate) fn contiguous(
        element: ElementType,
        shape: Vec<usize>,
        bytes: &'a [u8],
    ) -> Option<Self> {
        let mut strides = vec![1_usize; shape.len()];
        for dimension in (1..shape.len()).rev() {
            strides[dimension - 1] = strides[dimension].checked_mul(shape[dimension])?;
        }
        Self::strided(element, shape, strides, 0, bytes)
    }

    /// A tensor whose first element is at `offset`, in elements; `None` where an element is outside the bytes.
    pub(crate) fn strided(
        element: ElementType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        bytes: &'a [u8],
    ) -> Option<Self> {
        if shape.len() != strides.len() {
            return None;
        }
        let size = element.as_ref().map_or(0, |float| float.size_in_bytes());
        // Elements from the first to the last one in memory.
        let mut span = 0_usize;
        if !shape.contains(&0) {
            span = 1;
            for (length, stride) in shape.iter().zip(&strides) {
                span = span.checked_add((length - 1).checked_mul(*stride)?)?;
            }
        }
        let start = offset.checked_mul(size)?;
        let end = start.checked_add(span.checked_mul(size)?)?;
        Some(Self {
            bytes: bytes.get(start..end)?,
            element,
            shape,
            strides,
        })
    }

    /// The elements in the order of a contiguous tensor: more than the file has where a stride is 0.
    ///
    /// # Errors
    /// The name of the type, if it is not a floating-point type.
    pub(crate) fn values(&self) -> Result<Vec<f32>, &str> {
        let float = self.element.as_ref().map_err(String::as_str)?;
        Ok(match float {
            Float::F16 => self.gather(|bytes| f16::from_le_bytes(bytes).to_f32()),
            Float::BF16 => self.gather(|bytes| bf16::from_le_bytes(bytes).to_f32()),
            Float::F32 => self.gather(f32::from_le_bytes),
            Float::F64 => self.gather(|bytes| f64::from_le_bytes(bytes) as f32),
        })
    }

    fn gather<const SIZE: usize>(&self, value: impl Fn([u8; SIZE]) -> f32) -> Vec<f32> {
        let (elements, _) = self.bytes.as_chunks::<SIZE>();
        let dimensions = self.shape.iter().copied().zip(self.strides.iter().copied());
        let mut outer: Vec<_> = dimensions.collect();
        let (length, stride) = outer.pop().unwrap_or((1, 0));
        // Where the rows of the last dimension start.
        let mut starts = vec![0];
        for (length, stride) in outer {
            let indices = |start| (0..length).map(move |index| start + index * stride);
            starts = starts.into_iter().flat_map(indices).collect();
        }
        let mut values = Vec::with_capacity(starts.len() * length);
        for start in starts {
            values.extend((0..length).map(|index| value(elements[start + index * stride])));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    #[test]
    fn strided_tensors_are_read_in_order() {
        let bytes = bytes(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let read = |shape: &[usize], strides: &[usize], offset| {
            let view = View::strided(Ok(Float::F32), shape.into(), strides.into(), offset, &bytes);
            view.map(|view| view.values().unwrap())
        };
        assert_eq!(
            read(&[2, 3], &[3, 1], 1).unwrap(),
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        );
        // `torch.arange(6.).reshape(3, 2).t()`
        assert_eq!(
            read(&[2, 3], &[1, 2], 0).unwrap(),
            [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
        );
        // `torch.arange(1.).expand(2, 2)`
        assert_eq!(read(&[2, 2], &[0, 0], 6).unwrap(), [6.0; 4]);
        assert_eq!(
            read(&[2, 1, 2], &[1, 9, 4], 1).unwrap(),
            [1.0, 5.0, 2.0, 6.0]
        );
        assert_eq!(read(&[], &[], 3).unwrap(), [3.0]);
        assert!(read(&[2, 0], &[1, 1], 7).unwrap().is_empty());
        for (shape, strides, offset) in [
            (&[2, 3][..], &[3, 1][..], 2),
            (&[2, 3], &[3], 0),
            (&[2], &[7], 0),
            (&[], &[], 7),
            (&[0], &[1], 8),
            (&[], &[], usize::MAX),
            (&[3], &[usize::MAX], 0),
            (&[usize::MAX, 2], &[1, 1], 1),
            (&[2, 2], &[usize::MAX, 1], 0),
        ] {
            assert!(
                read(shape, strides, offset).is_none(),
                "{shape:?} {strides:?} {offset}"
            );
        }
        let contiguous = View::contiguous(Ok(Float::F32), vec![3, 2], &bytes).unwrap();
        assert_eq!(contiguous.values().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(View::contiguous(Ok(Float::F32), vec![4, 2], &bytes).is_none());
        assert!(View::contiguous(Ok(Float::F32), vec![2, usize::MAX, 2], &bytes).is_none());
    }

    /// `struct.pack("<e", 1.5)` and so on; bf16 is the first half of f32.
    #[test]
    fn every_floating_point_type_is_converted() {
        let read = |float, bytes: &[u8]| {
            let view = View::contiguous(Ok(float), vec![1], bytes).unwrap();
            view.values().unwrap()
        };
        assert_eq!(read(Float::F16, b"\x00\x3e"), [1.5]);
        assert_eq!(read(Float::BF16, b"\xc0\x3f"), [1.5]);
        assert_eq!(read(Float::F32, b"\0\0\xc0\x3f"), [1.5]);
        assert_eq!(read(Float::F64, b"\0\0\0\0\0\0\xf8\x3f"), [1.5]);
        assert_eq!(read(Float::F64, &1e300_f64.to_le_bytes()), [f32::INFINITY]);
        let other = View::contiguous(Err("I64".to_owned()), vec![9], b"").unwrap();
        assert_eq!(other.values(), Err("I64"));
    }
}
