// The project's kernels for a processor: one program (BF16 and PACK are given) with a table of functions that
// take their arguments as CUDA's driver hands them over, as pointers to the values.

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "emulator.h"

#define KERNEL(name) static void name
#define DEVICE static inline
#define ALIGNED(bytes) __attribute__((aligned(bytes)))
#define INDEX emulator_index

static inline float AS_FLOAT(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline unsigned AS_BITS(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Threads run one after the other here.
static inline void atomicAdd(unsigned long long *to, unsigned long long value) { *to += value; }
static inline void atomicMin(unsigned long long *to, unsigned long long value) {
  if (value < *to) *to = value;
}

#include "kernels.cu"

#define A(number, type) (*(type *)emulator_argument(arguments, number, sizeof(type)))
#define CALL(name) static void call_##name(void **arguments)
typedef const act *in;
typedef act *out;
typedef const float *floats;
typedef float *floats_out;
typedef const unsigned *words;
typedef const unsigned char *bytes;
typedef argmax_pack *argmax_out;
typedef const argmax_pack *argmax_in;
typedef unsigned long long *longs_out;
typedef const double *doubles;
typedef double *doubles_out;
typedef const step_values *values;
typedef unsigned u;

CALL(views) {
  views(A(0, bytes), A(1, words), A(2, floats), A(3, out), A(4, u), A(5, u), A(6, u), A(7, u));
}
CALL(transpose) { transpose(A(0, in), A(1, out), A(2, u), A(3, u), A(4, u)); }
CALL(resize_channels) { resize_channels(A(0, in), A(1, out), A(2, u), A(3, u), A(4, u)); }
CALL(narrow_all) { narrow_all(A(0, floats), A(1, out), A(2, u)); }
CALL(arrange_weight) {
  arrange_weight(A(0, floats), A(1, out), A(2, u), A(3, u), A(4, u), A(5, u), A(6, u));
}
CALL(arrange_gradient) { arrange_gradient(A(0, in), A(1, out), A(2, u), A(3, u), A(4, u), A(5, u)); }
CALL(im2col) {
  im2col(A(0, in), A(1, out), A(2, u), A(3, u), A(4, u), A(5, u), A(6, u), A(7, u), A(8, u), A(9, u));
}
CALL(col2im) {
  col2im(A(0, floats), A(1, out), A(2, u), A(3, u), A(4, u), A(5, u), A(6, u), A(7, u), A(8, u), A(9, u));
}
CALL(activate) { activate(A(0, in), A(1, floats), A(2, out), A(3, u), A(4, u), A(5, int)); }
CALL(add_bias_wide) { add_bias_wide(A(0, floats_out), A(1, floats), A(2, u), A(3, u)); }
CALL(relu_gradient) { relu_gradient(A(0, in), A(1, in), A(2, out), A(3, u)); }
CALL(pool) {
  pool(A(0, in), A(1, floats), A(2, out), A(3, argmax_out), A(4, u), A(5, u), A(6, u), A(7, u), A(8, u),
       A(9, u), A(10, u), A(11, u), A(12, int));
}
CALL(pool_gradient) {
  pool_gradient(A(0, in), A(1, in), A(2, argmax_in), A(3, out), A(4, u), A(5, u), A(6, u), A(7, u), A(8, u),
                A(9, u), A(10, u), A(11, u));
}
CALL(avg_pool) {
  avg_pool(A(0, in), A(1, out), A(2, u), A(3, u), A(4, u), A(5, u), A(6, u), A(7, u), A(8, u), A(9, u));
}
CALL(avg_pool_gradient) {
  avg_pool_gradient(A(0, in), A(1, out), A(2, u), A(3, u), A(4, u), A(5, u), A(6, u), A(7, u), A(8, u),
                    A(9, u));
}
CALL(sum_rows) { sum_rows(A(0, in), A(1, floats_out), A(2, u), A(3, u), A(4, u)); }
CALL(sum_sums) { sum_sums(A(0, floats), A(1, floats_out), A(2, u), A(3, u), A(4, u)); }
CALL(dropout) {
  dropout(A(0, in), A(1, out), A(2, u), A(3, u), A(4, u), A(5, u), A(6, u), A(7, u), A(8, float),
          A(9, float), A(10, values));
}
CALL(cross_entropy) {
  cross_entropy(A(0, floats), A(1, words), A(2, floats_out), A(3, longs_out), A(4, u), A(5, u),
                A(6, float), A(7, unsigned long long), A(8, values));
}
CALL(sgd) {
  sgd(A(0, tensors), A(1, u), A(2, u), A(3, float), A(4, float), A(5, float), A(6, u), A(7, floats), A(8, values));
}
CALL(ema) { ema(A(0, tensors), A(1, u), A(2, u), A(3, float)); }
CALL(squares) { squares(A(0, tensors), A(1, u), A(2, u), A(3, doubles_out)); }
CALL(sum_groups) { sum_groups(A(0, doubles), A(1, doubles_out), A(2, u), A(3, u)); }
CALL(clip_factor) { clip_factor(A(0, doubles), A(1, floats_out), A(2, double)); }
CALL(set_step_values) { set_step_values(A(0, step_values *), A(1, u), A(2, float), A(3, unsigned long long)); }

#define ENTRY(name) {#name, call_##name}
#define TABLE_NAME(variant) TABLE_NAME_OF(variant)
#define TABLE_NAME_OF(variant) emulator_program_##variant

const emulator_kernel TABLE_NAME(VARIANT)[] = {
    ENTRY(views),         ENTRY(transpose),     ENTRY(resize_channels), ENTRY(narrow_all),
    ENTRY(arrange_weight), ENTRY(arrange_gradient), ENTRY(activate),    ENTRY(add_bias_wide),
    ENTRY(relu_gradient), ENTRY(pool),          ENTRY(pool_gradient),   ENTRY(sum_rows),
    ENTRY(sum_sums),      ENTRY(dropout),       ENTRY(cross_entropy),   ENTRY(sgd),
    ENTRY(ema),           ENTRY(squares),       ENTRY(avg_pool),        ENTRY(avg_pool_gradient),
    ENTRY(sum_groups),    ENTRY(clip_factor),   ENTRY(set_step_values),
    ENTRY(im2col),        ENTRY(col2im),
    {0, 0},
};
