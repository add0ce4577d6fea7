// cuDNN's convolutions and cuBLASLt's products for a processor, as their documentation describes them: the sums,
// with every argument checked.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "emulator.h"

typedef int result;
enum { SUCCESS = 0, NOT_SUPPORTED = 3000, BLAS_NOT_SUPPORTED = 15 };

// Compiled for several instruction sets, of which the best is taken.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif

static int handle;

static float widen(const void *x, int bf16, size_t i) {
  if (!bf16) return ((const float *)x)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void narrow(void *to, int bf16, size_t i, float value) {
  if (!bf16) {
    ((float *)to)[i] = value;
    return;
  }
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float *widened(const void *x, int bf16, size_t count, const char *what) {
  emulator_check(x, count * (bf16 ? 2 : 4), what);
  float *copy = malloc(count * sizeof *copy + 1);
  for (size_t i = 0; i < count; ++i) copy[i] = widen(x, bf16, i);
  return copy;
}

static void put(void *to, int bf16, const float *from, size_t count, const char *what) {
  emulator_check(to, count * (bf16 ? 2 : 4), what);
  for (size_t i = 0; i < count; ++i) narrow(to, bf16, i, from[i]);
}

// ---- cuDNN ----

enum { CUDNN_FLOAT = 0, CUDNN_BF16 = 9, CUDNN_NHWC = 1, CUDNN_CROSS_CORRELATION = 1 };

typedef struct {
  int bf16, n, c, h, w;
} tensor;
typedef struct {
  int padding, math, set;
} convolution;

result cudnnCreate(void **made) { return *made = &handle, SUCCESS; }
result cudnnDestroy(void *made) { return SUCCESS; }
result cudnnSetStream(void *made, void *stream) { return SUCCESS; }
static result make(void **made, size_t bytes) { return *made = calloc(1, bytes), SUCCESS; }
static result destroy(void *made) { return free(made), SUCCESS; }
result cudnnCreateTensorDescriptor(void **made) { return make(made, sizeof(tensor)); }
result cudnnDestroyTensorDescriptor(void *made) { return destroy(made); }
result cudnnCreateFilterDescriptor(void **made) { return make(made, sizeof(tensor)); }
result cudnnDestroyFilterDescriptor(void *made) { return destroy(made); }
result cudnnCreateConvolutionDescriptor(void **made) { return make(made, sizeof(convolution)); }
result cudnnDestroyConvolutionDescriptor(void *made) { return destroy(made); }

static result set(tensor *t, int format, int type, int n, int c, int h, int w) {
  if (format != CUDNN_NHWC || (type != CUDNN_FLOAT && type != CUDNN_BF16))
    emulator_fail("cuDNN: format %d and type %d are not emulated", format, type);
  *t = (tensor){type == CUDNN_BF16, n, c, h, w};
  return SUCCESS;
}
result cudnnSetTensor4dDescriptor(tensor *t, int format, int type, int n, int c, int h, int w) {
  return set(t, format, type, n, c, h, w);
}
result cudnnSetFilter4dDescriptor(tensor *t, int type, int format, int k, int c, int h, int w) {
  return set(t, format, type, k, c, h, w);
}
result cudnnSetConvolution2dDescriptor(convolution *v, int pad_h, int pad_w, int stride_h, int stride_w,
                                       int dilation_h, int dilation_w, int mode, int type) {
  if (pad_h != pad_w || stride_h != 1 || stride_w != 1 || dilation_h != 1 || dilation_w != 1 ||
      mode != CUDNN_CROSS_CORRELATION || type != CUDNN_FLOAT)
    emulator_fail("cuDNN: this convolution is not emulated");
  *v = (convolution){pad_h, 0, 1};
  return SUCCESS;
}
result cudnnSetConvolutionMathType(convolution *v, int math) { return v->math = math, SUCCESS; }

typedef struct {
  int algorithm, status;
  float time;
  size_t memory;
  int determinism, math, reserved[3];
} performance;

// The heuristics recommend the algorithms that must not be used, where there are such.
static result recommend(int algorithm, int asked, int *count, performance *found) {
  if (asked < 1) emulator_fail("cuDNN: no room for an algorithm");
  *count = 1;
  found[0] = (performance){.algorithm = algorithm};
  return SUCCESS;
}
result cudnnGetConvolutionForwardAlgorithm_v7(void *h, tensor *x, tensor *w, convolution *v, tensor *y,
                                              int asked, int *count, performance *found) {
  return recommend(1, asked, count, found);
}
result cudnnGetConvolutionBackwardDataAlgorithm_v7(void *h, tensor *w, tensor *dy, convolution *v, tensor *dx,
                                                   int asked, int *count, performance *found) {
  return recommend(0, asked, count, found);
}
result cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *h, tensor *x, tensor *dy, convolution *v,
                                                     tensor *dw, int asked, int *count, performance *found) {
  return recommend(3, asked, count, found);
}

#define WORKSPACE 4096
result cudnnGetConvolutionForwardWorkspaceSize(void *h, tensor *x, tensor *w, convolution *v, tensor *y,
                                               int algorithm, size_t *bytes) {
  return *bytes = WORKSPACE, SUCCESS;
}
result cudnnGetConvolutionBackwardDataWorkspaceSize(void *h, tensor *w, tensor *dy, convolution *v, tensor *dx,
                                                    int algorithm, size_t *bytes) {
  return *bytes = WORKSPACE, SUCCESS;
}
result cudnnGetConvolutionBackwardFilterWorkspaceSize(void *h, tensor *x, tensor *dy, convolution *v,
                                                      tensor *dw, int algorithm, size_t *bytes) {
  return *bytes = WORKSPACE, SUCCESS;
}

static size_t count(const tensor *t) { return (size_t)t->n * t->c * t->h * t->w; }

static void check(const tensor *x, const tensor *w, const convolution *v, const tensor *y, void *workspace,
                  size_t bytes, const void *alpha, const void *beta) {
  if (x->n != y->n || x->c != w->c || w->n != y->c || !v->set ||
      y->h != x->h + 2 * v->padding + 1 - w->h || y->w != x->w + 2 * v->padding + 1 - w->w ||
      x->bf16 != w->bf16 || x->bf16 != y->bf16)
    emulator_fail("cuDNN: the descriptors do not fit one another");
  if (x->c % (x->bf16 ? 8 : 4)) emulator_fail("cuDNN: %d input channels are not padded", x->c);
  if (*(const float *)alpha != 1.0f || *(const float *)beta != 0.0f) emulator_fail("cuDNN: factors");
  if (bytes < WORKSPACE) emulator_fail("cuDNN: a workspace of %zu bytes", bytes);
  emulator_check(workspace, bytes, "cuDNN's workspace");
  memset(workspace, 0x5A, WORKSPACE);
}

// Calls BODY for every pair of an image's pixel and one of its results that a tap of the kernel joins, with
// pointers to their channels `xs` and `ys` and the tap's number.
#define EACH_TAP(BODY)                                                                                     \
  for (int n = 0; n < x->n; ++n)                                                                           \
    for (int row = 0; row < y->h; ++row)                                                                   \
      for (int column = 0; column < y->w; ++column)                                                        \
        for (int tap = 0; tap < w->h * w->w; ++tap) {                                                      \
          int r = row + tap / w->w - v->padding, c = column + tap % w->w - v->padding;                     \
          if (r < 0 || c < 0 || r >= x->h || c >= x->w) continue;                                          \
          float *restrict xs = X + (((size_t)n * x->h + r) * x->w + c) * x->c;                             \
          float *restrict ys = Y + (((size_t)n * y->h + row) * y->w + column) * y->c;                      \
          for (int k = 0; k < y->c; ++k) {                                                                 \
            float *restrict ws = W + ((size_t)k * w->h * w->w + tap) * x->c;                               \
            BODY                                                                                           \
          }                                                                                                \
        }

FAST static void forward(float *X, float *W, float *Y, const tensor *x, const tensor *w,
                         const convolution *v, const tensor *y) {
  EACH_TAP({
    float sum = 0.0f;
    for (int i = 0; i < x->c; ++i) sum += xs[i] * ws[i];
    ys[k] += sum;
  })
}

FAST static void backward_data(float *X, float *W, float *Y, const tensor *x, const tensor *w,
                               const convolution *v, const tensor *y) {
  EACH_TAP({
    float gradient = ys[k];
    for (int i = 0; i < x->c; ++i) xs[i] += gradient * ws[i];
  })
}

FAST static void backward_filter(float *X, float *W, float *Y, const tensor *x, const tensor *w,
                                 const convolution *v, const tensor *y) {
  EACH_TAP({
    float gradient = ys[k];
    for (int i = 0; i < x->c; ++i) ws[i] += gradient * xs[i];
  })
}

result cudnnConvolutionForward(void *h, const void *alpha, tensor *x, const void *xp, tensor *w,
                               const void *wp, convolution *v, int algorithm, void *workspace, size_t bytes,
                               const void *beta, tensor *y, void *yp) {
  check(x, w, v, y, workspace, bytes, alpha, beta);
  float *X = widened(xp, x->bf16, count(x), "x"), *W = widened(wp, w->bf16, count(w), "w");
  float *Y = calloc(count(y) + 1, sizeof *Y);
  forward(X, W, Y, x, w, v, y);
  put(yp, y->bf16, Y, count(y), "y");
  free(X), free(W), free(Y);
  return SUCCESS;
}

result cudnnConvolutionBackwardData(void *h, const void *alpha, tensor *w, const void *wp, tensor *y,
                                    const void *yp, convolution *v, int algorithm, void *workspace,
                                    size_t bytes, const void *beta, tensor *x, void *xp) {
  if (algorithm == 0) return NOT_SUPPORTED; // Its sums have no fixed order.
  check(x, w, v, y, workspace, bytes, alpha, beta);
  float *Y = widened(yp, y->bf16, count(y), "dy"), *W = widened(wp, w->bf16, count(w), "w");
  float *X = calloc(count(x) + 1, sizeof *X);
  backward_data(X, W, Y, x, w, v, y);
  put(xp, x->bf16, X, count(x), "dx");
  free(X), free(W), free(Y);
  return SUCCESS;
}

result cudnnConvolutionBackwardFilter(void *h, const void *alpha, tensor *x, const void *xp, tensor *y,
                                      const void *yp, convolution *v, int algorithm, void *workspace,
                                      size_t bytes, const void *beta, tensor *w, void *wp) {
  if (algorithm == 0 || algorithm == 3) return NOT_SUPPORTED; // Their sums have no fixed order.
  check(x, w, v, y, workspace, bytes, alpha, beta);
  float *X = widened(xp, x->bf16, count(x), "x"), *Y = widened(yp, y->bf16, count(y), "dy");
  float *W = calloc(count(w) + 1, sizeof *W);
  backward_filter(X, W, Y, x, w, v, y);
  put(wp, w->bf16, W, count(w), "dw");
  free(X), free(W), free(Y);
  return SUCCESS;
}

// ---- cuBLASLt ----

enum { REAL_F32 = 0, REAL_BF16 = 14, COMPUTE_F32 = 68, COMPUTE_TF32 = 77 };

typedef struct {
  int bf16;
  uint64_t rows, columns;
  int64_t leading;
} matrix;
typedef struct {
  int compute, transposed[2];
} product;

result cublasLtCreate(void **made) { return *made = &handle, SUCCESS; }
result cublasLtDestroy(void *made) { return SUCCESS; }
result cublasLtMatrixLayoutCreate(matrix **made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if ((type != REAL_F32 && type != REAL_BF16) || leading < (int64_t)rows)
    emulator_fail("cuBLASLt: a matrix of type %d is not emulated", type);
  *made = malloc(sizeof **made);
  **made = (matrix){type == REAL_BF16, rows, columns, leading};
  return SUCCESS;
}
result cublasLtMatrixLayoutDestroy(matrix *made) { return destroy(made); }
result cublasLtMatmulDescCreate(product **made, int compute, int scale) {
  if ((compute != COMPUTE_F32 && compute != COMPUTE_TF32) || scale != REAL_F32)
    emulator_fail("cuBLASLt: computing in type %d is not emulated", compute);
  *made = calloc(1, sizeof **made);
  (*made)->compute = compute;
  return SUCCESS;
}
result cublasLtMatmulDescDestroy(product *made) { return destroy(made); }
result cublasLtMatmulDescSetAttribute(product *made, int attribute, const void *value, size_t bytes) {
  // CUBLASLT_MATMUL_DESC_TRANSA and _TRANSB.
  if ((attribute != 3 && attribute != 4) || bytes != 4) emulator_fail("cuBLASLt: attribute %d", attribute);
  made->transposed[attribute - 3] = *(const int *)value;
  return SUCCESS;
}
result cublasLtMatmulPreferenceCreate(void **made) { return make(made, 8); }
result cublasLtMatmulPreferenceDestroy(void *made) { return destroy(made); }
result cublasLtMatmulPreferenceSetAttribute(void *made, int attribute, const void *value, size_t bytes) {
  if (attribute != 1 || bytes != 8) emulator_fail("cuBLASLt: preference %d", attribute);
  return SUCCESS;
}

static void shape(const product *p, const matrix *a, const matrix *b, const matrix *d, uint64_t *depth) {
  uint64_t rows = p->transposed[0] ? a->columns : a->rows, inner = p->transposed[0] ? a->rows : a->columns;
  uint64_t other = p->transposed[1] ? b->columns : b->rows, columns = p->transposed[1] ? b->rows : b->columns;
  if (rows != d->rows || columns != d->columns || inner != other || a->bf16 != b->bf16)
    emulator_fail("cuBLASLt: the matrices do not fit one another");
  *depth = inner;
}

typedef struct {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} heuristic;

result cublasLtMatmulAlgoGetHeuristic(void *h, product *p, matrix *a, matrix *b, matrix *c, matrix *d,
                                      void *preference, int asked, heuristic *found, int *count) {
  uint64_t depth;
  shape(p, a, b, d, &depth);
  memset(found, 0, sizeof *found);
  found->algorithm[0] = d->rows ^ d->columns << 20 ^ depth << 40;
  return *count = 1, SUCCESS;
}

FAST static void multiply(const float *A, const float *B, float *D, const product *p, const matrix *a,
                          const matrix *b, const matrix *d, uint64_t depth) {
  // Column by column; the inner loop runs along memory where it can.
  for (uint64_t j = 0; j < d->columns; ++j)
    for (uint64_t k = 0; k < depth; ++k) {
      float factor = p->transposed[1] ? B[k * b->leading + j] : B[j * b->leading + k];
      if (p->transposed[0]) continue;
      float *restrict to = D + j * d->rows;
      const float *restrict from = A + k * a->leading;
      for (uint64_t i = 0; i < d->rows; ++i) to[i] += factor * from[i];
    }
  if (p->transposed[0])
    for (uint64_t j = 0; j < d->columns; ++j)
      for (uint64_t i = 0; i < d->rows; ++i) {
        float sum = 0.0f;
        if (p->transposed[1])
          for (uint64_t k = 0; k < depth; ++k) sum += A[i * a->leading + k] * B[k * b->leading + j];
        else
          for (uint64_t k = 0; k < depth; ++k) sum += A[i * a->leading + k] * B[j * b->leading + k];
        D[j * d->rows + i] = sum;
      }
}

result cublasLtMatmul(void *h, product *p, const float *alpha, const void *ap, matrix *a, const void *bp,
                      matrix *b, const float *beta, const void *cp, matrix *c, void *dp, matrix *d,
                      const uint64_t *algorithm, void *workspace, size_t bytes, void *stream) {
  uint64_t depth;
  shape(p, a, b, d, &depth);
  if (algorithm[0] != (d->rows ^ d->columns << 20 ^ depth << 40))
    emulator_fail("cuBLASLt: the algorithm was chosen for another product");
  if (*alpha != 1.0f || *beta != 0.0f || cp != dp || c != d) emulator_fail("cuBLASLt: factors");
  emulator_check(workspace, bytes, "cuBLASLt's workspace");
  float *A = widened(ap, a->bf16, (size_t)a->leading * a->columns, "a");
  float *B = widened(bp, b->bf16, (size_t)b->leading * b->columns, "b");
  float *D = calloc(d->rows * d->columns + 1, sizeof *D);
  multiply(A, B, D, p, a, b, d, depth);
  for (uint64_t j = 0; j < d->columns; ++j)
    put((char *)dp + j * d->leading * (d->bf16 ? 2 : 4), d->bf16, D + j * d->rows, d->rows, "d");
  free(A), free(B), free(D);
  return SUCCESS;
}
