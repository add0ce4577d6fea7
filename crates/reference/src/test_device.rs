//! One test body on each device.

/// Tests of one body: a function of a device, the type of the weights and an `ops::Arithmetic`, which returns a `Result`. A
/// case names them: `cpu_f64`, for example, or `cuda_bf16`; `_direct` is `--conv direct`. The tests are in a module with
/// the name of the body, so that both names select a test: `the_body::cuda_bf16`.
///
/// Tests on a GPU exist with the feature `cuda` and are ignored: they need a GPU, or the emulated one.
#[macro_export]
macro_rules! test_device {
    ($body:ident) => {
        $crate::test_device!($body: cpu_f32, cpu_bf16, cuda_f32, cuda_tf32, cuda_bf16);
    };
    ($body:ident: $($case:ident),+) => {
        mod $body {
            $($crate::test_device!(@ $body $case);)+
        }
    };
    (@ $body:ident cpu_f64) => { $crate::test_device!(@cpu $body cpu_f64 F64 Winograd F32); };
    (@ $body:ident cpu_f64_direct) => { $crate::test_device!(@cpu $body cpu_f64_direct F64 Direct F32); };
    (@ $body:ident cpu_f32) => { $crate::test_device!(@cpu $body cpu_f32 F32 Winograd F32); };
    (@ $body:ident cpu_f32_direct) => { $crate::test_device!(@cpu $body cpu_f32_direct F32 Direct F32); };
    (@ $body:ident cpu_bf16) => { $crate::test_device!(@cpu $body cpu_bf16 F32 Direct Bf16); };
    (@ $body:ident cuda_f32) => { $crate::test_device!(@cuda $body cuda_f32 Winograd F32); };
    (@ $body:ident cuda_tf32) => { $crate::test_device!(@cuda $body cuda_tf32 Winograd Tf32); };
    (@ $body:ident cuda_bf16) => { $crate::test_device!(@cuda $body cuda_bf16 Winograd Bf16); };
    (@ $body:ident cuda_f32_direct) => { $crate::test_device!(@cuda $body cuda_f32_direct Direct F32); };
    (@ $body:ident cuda_tf32_direct) => { $crate::test_device!(@cuda $body cuda_tf32_direct Direct Tf32); };
    (@ $body:ident cuda_bf16_direct) => { $crate::test_device!(@cuda $body cuda_bf16_direct Direct Bf16); };
    (@cpu $body:ident $case:ident $dtype:ident $algorithm:ident $precision:ident) => {
        #[test]
        fn $case() {
            let device = candle_core::Device::Cpu;
            $crate::test_device!(@call $body device $dtype $algorithm $precision);
        }
    };
    (@cuda $body:ident $case:ident $algorithm:ident $precision:ident) => {
        #[cfg(feature = "cuda")]
        #[test]
        #[ignore = "needs a GPU"]
        fn $case() {
            let device = ops::cuda::open(0).unwrap();
            $crate::test_device!(@call $body device F32 $algorithm $precision);
        }
    };
    (@call $body:ident $device:ident $dtype:ident $algorithm:ident $precision:ident) => {
        let arithmetic = ops::Arithmetic {
            conv_algorithm: ops::ConvAlgorithm::$algorithm,
            precision: ops::Precision::$precision,
        };
        super::$body(&$device, candle_core::DType::$dtype, arithmetic).unwrap();
    };
}
