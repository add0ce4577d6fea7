//! Sums of rows.

use super::memory::{Elements, empty};
use super::program::{GROUP, Program, launch};
use candle_core::{DType, Result, Tensor};

/// The sum of the rows of `x` `[rows, channels]`, in `f32`: over groups of rows, then over groups of their sums, always in
/// order.
pub(crate) fn sum_rows(x: Elements<'_>, (rows, channels): (usize, usize)) -> Result<Tensor> {
    assert_eq!(x.count(), rows * channels);
    let groups = |kernel, x: Elements<'_>, program: Program, rows: usize| {
        let left = rows.div_ceil(GROUP);
        let sums = empty(x.device, DType::F32, left * channels)?;
        let packs = program.packs(left * channels);
        let sizes = [packs, rows, channels].map(Into::into);
        let arguments = [&[x.into(), (&sums).into()], &sizes[..]].concat();
        launch(x.device, program, kernel, packs, &arguments)?;
        Ok::<_, candle_core::Error>((sums, left))
    };
    let (mut sums, mut left) = groups("sum_rows", x, Program::packed(x.dtype, channels), rows)?;
    while left > 1 {
        (sums, left) = groups(
            "sum_sums",
            sums.elements(),
            Program::packed(x.dtype, 1),
            left,
        )?;
    }
    Ok(sums.tensor())
}
