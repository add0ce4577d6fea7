//! The names of the crate `candle-kernels`, which compiles candle's kernels with nvcc, without the kernels: `ops` calls its
//! own alone, which are compiled when the program runs (`ops/src/cuda/kernels.cu`). An operation of candle's that needs a
//! kernel fails on a GPU.

/// The kernels of a file.
pub struct Module(usize);

impl Module {
    /// Its place in [`ALL_IDS`].
    pub fn index(&self) -> usize {
        self.0
    }

    /// Not a program, so that loading it fails.
    pub fn ptx(&self) -> &'static str {
        ""
    }
}

macro_rules! files {
    ($($name:ident $id:literal $index:literal)*) => {
        /// The files of candle's kernels.
        pub const ALL_IDS: [&str; 11] = [$($id),*];
        $(pub const $name: Module = Module($index);)*
    };
}
files! {
    AFFINE "affine" 0 BINARY "binary" 1 CAST "cast" 2 CONV "conv" 3 FILL "fill" 4 INDEXING "indexing" 5
    QUANTIZED "quantized" 6 REDUCE "reduce" 7 SORT "sort" 8 TERNARY "ternary" 9 UNARY "unary" 10
}

/// The kernels that nvcc links into a program: quantised products and mixtures of experts.
#[allow(non_snake_case, clippy::missing_safety_doc)]
pub mod ffi {
    use core::ffi::c_void;

    // A panic here ends the process with its message.
    macro_rules! missing {
        ($($name:ident)* : $types:tt) => { $(missing!(@ $name $types);)* };
        (@ $name:ident ($($type:ty),*)) => {
            pub unsafe extern "C" fn $name($(_: $type),*) {
                panic!("{}: this program was built without candle's kernels", stringify!($name));
            }
        };
    }

    missing! {
        moe_gemm_wmma
        : (*const c_void, *const c_void, *const i32, *const i32, *const f32, *mut c_void, *mut i32, *mut i32, i32, i32, i32, i32, i32, i32, bool, i64)
    }
    missing! {
        moe_gemm_gguf
        : (*const f32, *const c_void, *const i32, *const i32, *const f32, *mut c_void, i32, i32, i32, i32, i32, i32, i64)
    }
    missing! {
        moe_gemm_gguf_prefill
        : (*const c_void, *const u8, *const i32, *const i32, *const f32, *mut c_void, i32, i32, i32, i32, i32, i32, i32, i64)
    }
    missing! {
        launch_mmvq_gguf_q4_0_bf16_plain launch_mmvq_gguf_q4_1_bf16_plain launch_mmvq_gguf_q5_0_bf16_plain launch_mmvq_gguf_q5_1_bf16_plain launch_mmvq_gguf_q8_0_bf16_plain launch_mmvq_gguf_q2_k_bf16_plain launch_mmvq_gguf_q3_k_bf16_plain launch_mmvq_gguf_q4_k_bf16_plain launch_mmvq_gguf_q5_k_bf16_plain launch_mmvq_gguf_q6_k_bf16_plain launch_mmvq_gguf_q4_0_f32_plain launch_mmvq_gguf_q4_1_f32_plain launch_mmvq_gguf_q5_0_f32_plain launch_mmvq_gguf_q5_1_f32_plain launch_mmvq_gguf_q8_0_f32_plain launch_mmvq_gguf_q2_k_f32_plain launch_mmvq_gguf_q3_k_f32_plain launch_mmvq_gguf_q4_k_f32_plain launch_mmvq_gguf_q5_k_f32_plain launch_mmvq_gguf_q6_k_f32_plain launch_mmvq_gguf_q4_0_f16_plain launch_mmvq_gguf_q4_1_f16_plain launch_mmvq_gguf_q5_0_f16_plain launch_mmvq_gguf_q5_1_f16_plain launch_mmvq_gguf_q8_0_f16_plain launch_mmvq_gguf_q2_k_f16_plain launch_mmvq_gguf_q3_k_f16_plain launch_mmvq_gguf_q4_k_f16_plain launch_mmvq_gguf_q5_k_f16_plain launch_mmvq_gguf_q6_k_f16_plain
        : (*const c_void, *const c_void, *mut c_void, i32, i32, i32, i32, i32, *mut c_void)
    }
    missing! {
        launch_mmvq_gguf_quantize_q8_1_bf16 launch_mmvq_gguf_quantize_q8_1_f16 launch_mmvq_gguf_quantize_q8_1_f32
        : (*const c_void, *mut c_void, i32, i32, i32, *mut c_void)
    }
    missing! {
        launch_mmq_quantize_q8_1_D4 launch_mmq_quantize_q8_1_DS4 launch_mmq_quantize_q8_1_D2S6
        : (*const c_void, *const i32, *mut c_void, i32, i64, i64, i64, i64, i64, i64, i64, i64, *mut c_void)
    }
    missing! {
        launch_mmq_gguf_q4_0 launch_mmq_gguf_q4_1 launch_mmq_gguf_q5_0 launch_mmq_gguf_q5_1 launch_mmq_gguf_q8_0 launch_mmq_gguf_q2_k launch_mmq_gguf_q3_k launch_mmq_gguf_q4_k launch_mmq_gguf_q5_k launch_mmq_gguf_q6_k
        : (*mut c_void, *const c_void, *const c_void, *mut c_void, i64, i64, i64, i64, i64, i32, i32, i64, i32, *mut c_void)
    }
}
