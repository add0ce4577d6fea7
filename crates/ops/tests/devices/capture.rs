//! What only a GPU has: captured steps, and the choice of cuDNN's engines.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use ops::cuda::{CapturedStep, StepValues, choose_engines, engine_choices};
use ops::{
    Activation, Arithmetic, Conv2d, ConvAlgorithm, GradientScale, Precision, Sgd, Tape, sgd_step,
};

fn gpu() -> Device {
    ops::cuda::open(0).unwrap()
}

fn values(learning_rate: f32) -> StepValues {
    StepValues {
        learning_rate,
        step: 0,
        step_in_epoch: 0,
    }
}

#[test]
#[ignore = "needs a GPU"]
fn captured_steps_read_new_inputs_and_values_cuda_f32() -> Result<()> {
    let device = gpu();
    let parameter = Var::zeros(3, DType::F32, &device)?;
    let buffer = Tensor::zeros(3, DType::F32, &device)?;
    let step = |gradient: &Tensor| {
        // Dropped within the step.
        let gradient = ops::relu(gradient)?;
        let updates = [[parameter.as_tensor(), &buffer, &gradient]];
        sgd_step(Sgd::default(), &GradientScale::ONE, &updates)
    };
    let gradient = |values: [f32; 3]| Tensor::new(&values, &device);
    step(&gradient([1.0; 3])?)?;
    let first = gradient([9.0, 9.0, 9.0])?;
    let mut captured = CapturedStep::capture([&first], |[gradient]| step(gradient))?;
    // Capturing computes nothing.
    assert_eq!(parameter.to_vec1::<f32>()?, [0.0; 3]);
    for (gradients, learning_rate) in [([1.0, 2.0, -1.0], 0.5), ([4.0, -3.0, 0.0], 2.0)] {
        captured.replay([&gradient(gradients)?], values(learning_rate))?;
    }
    assert_eq!(parameter.to_vec1::<f32>()?, [-8.5, -1.0, 0.0]);
    assert!(
        captured
            .replay([&Tensor::zeros(4, DType::F32, &device)?], values(1.0))
            .is_err()
    );
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn a_failed_capture_leaves_the_gpu_as_it_was_cuda_f32() -> Result<()> {
    let device = gpu();
    let x = Tensor::new(&[1_f32, -2.0, 3.0], &device)?;
    let copies = |[x]: &[Tensor; 1]| {
        let y = ops::relu(x)?;
        y.to_vec1::<f32>().map(drop)
    };
    assert!(CapturedStep::capture([&x], copies).is_err());
    let waits = |[x]: &[Tensor; 1]| {
        let y = ops::relu(x)?;
        let waited = device.synchronize();
        // In a capture that failed.
        ops::relu(&y)?;
        waited
    };
    assert!(CapturedStep::capture([&x], waits).is_err());
    let fails = |_: &[Tensor; 1]| bail!("no step");
    assert!(CapturedStep::capture([&x], fails).is_err());
    assert_eq!(ops::relu(&x)?.to_vec1::<f32>()?, [1.0, 0.0, 3.0]);
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn engines_are_recorded_and_chosen_again_cuda_tf32() -> Result<()> {
    let device = gpu();
    let Device::Cuda(gpu) = &device else {
        bail!("the device is no GPU");
    };
    let x = Tensor::ones((2, 8, 8, 16), DType::F32, &Device::Cpu)?.to_device(&device)?;
    let weight = Tensor::ones((32, 16, 3, 3), DType::F32, &Device::Cpu)?.to_device(&device)?;
    let bias = Tensor::zeros(32, DType::F32, &device)?;
    let compute = || {
        let mut tape = Tape::no_grad(Arithmetic {
            conv_algorithm: ConvAlgorithm::Winograd,
            precision: Precision::Tf32,
        });
        let layer = Conv2d {
            padding: 1,
            activation: Activation::Identity,
            pool: None,
        };
        let y = tape.conv2d("conv", layer, &x, &weight, &bias)?;
        y.flatten_all()?.to_vec1::<f32>()
    };
    let name = "forward 2x8x8x16 to 32, 3x3 padded by 1, tf32";
    for benchmark in [false, true] {
        choose_engines(gpu, Default::default(), benchmark)?;
        let first = compute()?;
        let chosen = engine_choices(gpu)?;
        assert!(chosen.keys().eq([name]), "{chosen:?}");
        assert!(chosen[name].starts_with("eng"), "{chosen:?}");
        choose_engines(gpu, chosen.clone(), false)?;
        assert_eq!(compute()?, first);
        assert_eq!(engine_choices(gpu)?, chosen);
    }
    // One that is not there is replaced.
    let unknown = [(name.to_owned(), "eng0_k99=1".to_owned())].into();
    choose_engines(gpu, unknown, false)?;
    compute()?;
    assert_ne!(engine_choices(gpu)?[name], "eng0_k99=1");
    choose_engines(gpu, Default::default(), false)
}
