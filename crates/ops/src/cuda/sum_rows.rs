//! Sums of rows.

use super::program::{Argument, GROUP, Program, launch};
use super::{Activations, room, tensor};
use candle_core::cuda::cudarc::driver::CudaView;
use candle_core::{CudaDevice, Result, Tensor};

/// The sum of the rows of `x` `[rows, channels]`, in `f32`: over groups of rows, then over groups of their sums, always in
/// order.
pub(crate) fn sum_rows<T: Activations>(
    device: &CudaDevice,
    x: &CudaView<'_, T>,
    (rows, channels): (usize, usize),
) -> Result<Tensor> {
    assert_eq!(x.len(), rows * channels);
    let program = Program::packed::<T>(channels);
    let mut left = rows.div_ceil(GROUP);
    let mut sums = room::<f32>(device, left * channels)?;
    let packs = program.packs(left * channels);
    launch(
        device,
        program,
        "sum_rows",
        packs,
        &[
            Argument::read(device, x),
            Argument::write(device, &mut sums),
            packs.into(),
            rows.into(),
            channels.into(),
        ],
    )?;
    while left > 1 {
        let rows = left;
        left = rows.div_ceil(GROUP);
        let mut fewer = room::<f32>(device, left * channels)?;
        launch(
            device,
            Program::packed::<T>(1),
            "sum_sums",
            left * channels,
            &[
                Argument::read(device, &sums.as_view()),
                Argument::write(device, &mut fewer),
                (left * channels).into(),
                rows.into(),
                channels.into(),
            ],
        )?;
        sums = fewer;
    }
    Ok(tensor(sums, channels, device))
}
