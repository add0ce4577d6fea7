//! This program against PyTorch in float64, on the CPU and, where there is one, on the GPU.

#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Device};
use models::Architecture;
use ops::{Arithmetic, ConvAlgorithm, Precision};
use reference::{
    Deviation, Error, Setting, autocast_errors, gradients, network, operations, relative_error,
};

fn cpu(dtype: DType, convolution: ConvAlgorithm) -> Setting {
    Setting {
        device: Device::Cpu,
        dtype,
        arithmetic: convolution.into(),
    }
}

fn assert_within(deviations: &[Deviation], tolerance: f64) {
    assert!(!deviations.is_empty());
    for deviation in deviations {
        assert!(deviation.is_within(tolerance), "{tolerance}: {deviation:?}");
    }
}

#[test]
fn operations_agree_with_pytorch() -> Result<(), Error> {
    for dtype in [DType::F32, DType::F64] {
        for convolution in ConvAlgorithm::ALL {
            let deviations = operations(&cpu(dtype, convolution))?;
            // Six convolutions with four tensors each, seven poolings with two.
            assert_eq!(deviations.len(), 38);
            assert_within(&deviations, 1e-4);
        }
    }
    Ok(())
}

/// In `bf16` on the CPU.
fn cpu_bf16() -> Setting {
    Setting {
        arithmetic: Arithmetic {
            conv_algorithm: ConvAlgorithm::Direct,
            precision: Precision::Bf16,
        },
        ..cpu(DType::F32, ConvAlgorithm::Direct)
    }
}

#[test]
fn operations_agree_with_pytorch_in_bf16() -> Result<(), Error> {
    assert_within(&operations(&cpu_bf16())?, 2e-2);
    Ok(())
}

/// The errors of whole gradients, because those of single elements say little: rounding decides where pooling sends them.
#[test]
fn gradients_in_bf16_are_as_exact_as_those_of_pytorch() -> Result<(), Error> {
    for name in models::POST {
        let architecture = name.parse().unwrap();
        let exact = gradients(architecture, &cpu(DType::F64, ConvAlgorithm::Direct))?;
        let found = gradients(architecture, &cpu_bf16())?;
        let theirs = autocast_errors(architecture)?;
        for ((name, found), (_, exact)) in found.iter().zip(&exact) {
            let (ours, theirs) = (relative_error(found, exact)?, theirs[name]);
            println!(
                "| {architecture} | {name} | {:.2} % | {:.2} % |",
                100.0 * ours,
                100.0 * theirs
            );
            assert!(
                ours <= theirs,
                "{architecture}, {name}: {ours}, PyTorch {theirs}"
            );
        }
    }
    Ok(())
}

/// Tolerances of relative errors.
struct Tolerances {
    values: f64,
    gradients: f64,
    afterwards: f64,
}

impl Tolerances {
    fn all(tolerance: f64) -> Self {
        Self {
            values: tolerance,
            gradients: tolerance,
            afterwards: tolerance,
        }
    }
}

// Where two elements of a pooling window are nearly equal, or one is nearly zero before ReLU, a rounding
// error decides where the gradient goes. In PyTorch in double precision, errors of 1e-5 added to the
// outputs of the convolutions change gradients of this batch by up to 2 %, and all later steps with them.
const ROUNDING_DECIDES: f64 = 1e-2;

fn check(architecture: Architecture, setting: &Setting, tolerances: &Tolerances) {
    let found = network(architecture, setting).unwrap();
    assert_eq!(found.values.len(), 2);
    assert_eq!(found.gradients.len(), architecture.parameters().len());
    assert_within(&found.values, tolerances.values);
    assert_within(&found.gradients, tolerances.gradients);
    assert_within(&found.afterwards, tolerances.afterwards);
}

fn check_all(architecture: Architecture) {
    for convolution in ConvAlgorithm::ALL {
        let setting = cpu(DType::F64, convolution);
        check(architecture, &setting, &Tolerances::all(1e-9));
    }
    let direct = cpu(DType::F32, ConvAlgorithm::Direct);
    check(architecture, &direct, &Tolerances::all(1e-4));
    let winograd = cpu(DType::F32, ConvAlgorithm::Winograd);
    let tolerances = Tolerances {
        values: 1e-4,
        gradients: ROUNDING_DECIDES,
        afterwards: ROUNDING_DECIDES,
    };
    check(architecture, &winograd, &tolerances);
}

#[test]
fn networks_agree_with_pytorch() {
    for architecture in Architecture::ALL {
        check_all(*architecture);
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::*;
    use ops::cuda::{DeviceError, open};

    /// The GPU; none where the machine has none.
    fn gpu(conv_algorithm: ConvAlgorithm, precision: Precision) -> Option<Setting> {
        let device = match open(0) {
            Ok(device) => device,
            Err(error @ (DeviceError::NoDriver | DeviceError::NoDevice)) => {
                #[allow(clippy::print_stdout)] // What a test did not do is said.
                {
                    println!("skipped: {error}");
                }
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        Some(Setting {
            device,
            dtype: DType::F32,
            arithmetic: Arithmetic {
                conv_algorithm,
                precision,
            },
        })
    }

    fn tolerance(precision: Precision) -> f64 {
        match precision {
            Precision::F32 => 1e-4,
            Precision::Tf32 => 3e-3,
            Precision::Bf16 => 2e-2,
        }
    }

    // The networks are checked by `cargo xtask gpu-check`: without a GPU, on the emulated one, they take minutes.
    #[test]
    fn operations_agree_with_pytorch() -> Result<(), Error> {
        for precision in Precision::ALL {
            for algorithm in ConvAlgorithm::ALL {
                let Some(setting) = gpu(algorithm, precision) else {
                    return Ok(());
                };
                assert_within(&operations(&setting)?, tolerance(precision));
            }
        }
        Ok(())
    }
}
