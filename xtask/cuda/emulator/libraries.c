// cuDNN's convolutions and cuBLASLt's products for a processor, as their documentation describes them: the sums,
// with every argument checked.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "emulator.h"

typedef int result;
enum { SUCCESS = 0, NOT_SUPPORTED = 3000, EXECUTION_FAILED = 5000, BLAS_NOT_SUPPORTED = 15 };

// Compiled for several instruction sets, of which the best is taken.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx512f", "avx2", "default")))
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

// The factors of tensor cores in TF32: 10 bits of the significand, the others cut off.
static void to_tf32(float *x, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    bits &= ~(uint32_t)0x1fff;
    memcpy(&x[i], &bits, sizeof bits);
  }
}

static void put(void *to, int bf16, const float *from, size_t count, const char *what) {
  emulator_check(to, count * (bf16 ? 2 : 4), what);
  for (size_t i = 0; i < count; ++i) narrow(to, bf16, i, from[i]);
}

// ---- cuDNN: the graph interface, for graphs of one convolution ----

enum { CUDNN_FLOAT = 0, CUDNN_BF16 = 9 };

// Attributes, by the numbers of cudnn_graph.h.
enum {
  CONVOLUTION_COMP_TYPE = 100, CONVOLUTION_CONV_MODE, CONVOLUTION_DILATIONS, CONVOLUTION_FILTER_STRIDES,
  CONVOLUTION_POST_PADDINGS, CONVOLUTION_PRE_PADDINGS, CONVOLUTION_SPATIAL_DIMS,
  ENGINEHEUR_MODE = 200, ENGINEHEUR_OPERATION_GRAPH, ENGINEHEUR_RESULTS,
  ENGINECFG_ENGINE = 300, ENGINECFG_KNOB_CHOICES = 302,
  EXECUTION_PLAN_HANDLE = 400, EXECUTION_PLAN_ENGINE_CONFIG, EXECUTION_PLAN_WORKSPACE_SIZE,
  FORWARD_ALPHA = 700, // Then beta, the convolution, and the tensors, each pass in its own order.
  BACKWARD_DATA_ALPHA = 706,
  BACKWARD_FILTER_ALPHA = 712,
  OPERATIONGRAPH_HANDLE = 800, OPERATIONGRAPH_OPS,
  TENSOR_BYTE_ALIGNMENT = 900, TENSOR_DATA_TYPE, TENSOR_DIMENSIONS, TENSOR_STRIDES, TENSOR_UNIQUE_ID = 906,
  VARIANT_PACK_UNIQUE_IDS = 1000, VARIANT_PACK_DATA_POINTERS, VARIANT_PACK_INTERMEDIATES, VARIANT_PACK_WORKSPACE,
  ENGINE_GLOBAL_INDEX = 1301, ENGINE_NUMERICAL_NOTE = 1303,
};

// Descriptions.
enum {
  CONVOLUTION = 1, ENGINE, ENGINECFG, ENGINEHEUR, EXECUTION_PLAN, FORWARD = 10, BACKWARD_FILTER, BACKWARD_DATA,
  OPERATIONGRAPH = 15, VARIANT_PACK, TENSOR, DEVICEPROP = 38,
};

typedef struct {
  int name, type;
  int64_t count;
  char data[64];
} attribute;

typedef struct description {
  int kind, finalized, attributes;
  attribute attribute[12];
  // Of an engine or its configuration: which engine; of a configuration, the graph.
  int engine;
  struct description *graph;
} description;

// The engines that the heuristics name: one that fails when it is executed, one that needs more memory than any GPU has, one
// on tensor cores, one without remarks, and one that adds in no fixed order. CUDA_EMULATOR_ENGINES is how many of them there
// are (all).
enum { FAILING, LARGE, TENSOR_CORES, PLAIN, UNORDERED, ENGINES };

static int engines(void) {
  const char *text = getenv("CUDA_EMULATOR_ENGINES");
  return text ? atoi(text) : ENGINES;
}

static size_t size_of(int type) {
  switch (type) {
    case 0: case 3: case 6: case 15: return 8; // Handle, 64-bit number, pointer, description
    case 1: case 4: case 7: case 8: return 4;  // Data type, float, modes
    default: emulator_fail("cuDNN: attributes of type %d are not emulated", type);
  }
}

static const attribute *find(const description *d, int name) {
  for (int i = 0; i < d->attributes; ++i)
    if (d->attribute[i].name == name) return &d->attribute[i];
  emulator_fail("cuDNN: description %d lacks attribute %d", d->kind, name);
}

static int64_t number(const description *d, int name, int at) {
  const attribute *a = find(d, name);
  if (a->type != 3 || at >= a->count) emulator_fail("cuDNN: attribute %d", name);
  return ((const int64_t *)a->data)[at];
}

static int choice(const description *d, int name) { return *(const int *)find(d, name)->data; }

static description *part(const description *d, int name, int kind) {
  const attribute *a = find(d, name);
  description *p = *(description *const *)a->data;
  if (a->type != 15 || a->count != 1 || p->kind != kind || !p->finalized)
    emulator_fail("cuDNN: attribute %d is no finalized description %d", name, kind);
  return p;
}

size_t cudnnGetVersion(void) { return 92600; }
size_t cudnnGetCudartVersion(void) { return 13000; }
result cudnnCreate(void **made) { return *made = &handle, SUCCESS; }
result cudnnDestroy(void *made) { return SUCCESS; }
result cudnnSetStream(void *made, void *stream) { return SUCCESS; }

result cudnnBackendCreateDescriptor(int kind, description **made) {
  if (kind == DEVICEPROP) return NOT_SUPPORTED;
  *made = calloc(1, sizeof **made);
  (*made)->kind = kind;
  return SUCCESS;
}
result cudnnBackendDestroyDescriptor(description *d) { return free(d), SUCCESS; }
result cudnnBackendSetAttribute(description *d, int name, int type, int64_t count, const void *values) {
  size_t bytes = count * size_of(type);
  if (d->finalized || d->attributes == 12 || bytes > sizeof d->attribute[0].data)
    emulator_fail("cuDNN: attribute %d cannot be set", name);
  attribute *a = &d->attribute[d->attributes++];
  *a = (attribute){name, type, count};
  memcpy(a->data, values, bytes);
  return SUCCESS;
}
result cudnnBackendFinalize(description *d) {
  switch (d->kind) {
    case TENSOR:
      if (number(d, TENSOR_BYTE_ALIGNMENT, 0) != 16) emulator_fail("cuDNN: alignment");
      break;
    case OPERATIONGRAPH: find(d, OPERATIONGRAPH_HANDLE); break;
    case ENGINEHEUR: part(d, ENGINEHEUR_OPERATION_GRAPH, OPERATIONGRAPH); break;
    case EXECUTION_PLAN:
      find(d, EXECUTION_PLAN_HANDLE);
      part(d, EXECUTION_PLAN_ENGINE_CONFIG, ENGINECFG);
      break;
  }
  return d->finalized = 1, SUCCESS;
}

#define WORKSPACE 4096
result cudnnBackendGetAttribute(description *d, int name, int type, int64_t room, int64_t *count, void *values) {
  description **parts = values;
  switch (name) {
    case ENGINEHEUR_RESULTS:
      // The second mode knows no more.
      *count = choice(d, ENGINEHEUR_MODE) == 3 ? engines() : 0;
      if (type != 15 || room < *count) emulator_fail("cuDNN: no room for engines");
      for (int i = 0; i < *count; ++i) {
        if (parts[i]->kind != ENGINECFG) emulator_fail("cuDNN: no configuration");
        parts[i]->engine = i;
        parts[i]->finalized = 1;
        parts[i]->graph = part(d, ENGINEHEUR_OPERATION_GRAPH, OPERATIONGRAPH);
      }
      return SUCCESS;
    case ENGINECFG_ENGINE:
      if (type != 15 || room != 1 || parts[0]->kind != ENGINE) emulator_fail("cuDNN: no engine");
      parts[0]->engine = d->engine;
      return *count = 1, SUCCESS;
    case ENGINECFG_KNOB_CHOICES: return *count = 0, SUCCESS;
    case ENGINE_GLOBAL_INDEX:
      if (type != 3 || room != 1) emulator_fail("cuDNN: no room for a number");
      *(int64_t *)values = d->engine;
      return *count = 1, SUCCESS;
    case ENGINE_NUMERICAL_NOTE:
      if (type != 11 || room < 1) emulator_fail("cuDNN: no room for notes");
      *count = d->engine == UNORDERED || d->engine == TENSOR_CORES;
      if (*count) *(int *)values = d->engine == UNORDERED ? 4 : 0;
      return SUCCESS;
    case EXECUTION_PLAN_WORKSPACE_SIZE:
      if (type != 3 || room < 1) emulator_fail("cuDNN: no room for a size");
      *(int64_t *)values =
          part(d, EXECUTION_PLAN_ENGINE_CONFIG, ENGINECFG)->engine == LARGE ? (int64_t)1 << 40 : WORKSPACE;
      return *count = 1, SUCCESS;
  }
  emulator_fail("cuDNN: attribute %d is not emulated", name);
}

typedef struct {
  int bf16, n, c, h, w, id;
} tensor;
typedef struct {
  int padding;
} convolution;

static tensor tensor_of(const description *d) {
  int type = choice(d, TENSOR_DATA_TYPE);
  int64_t sizes[4], strides[4];
  for (int i = 0; i < 4; ++i) {
    sizes[i] = number(d, TENSOR_DIMENSIONS, i);
    strides[i] = number(d, TENSOR_STRIDES, i);
  }
  if ((type != CUDNN_FLOAT && type != CUDNN_BF16) || strides[1] != 1 || strides[3] != sizes[1] ||
      strides[2] != sizes[1] * sizes[3] || strides[0] != sizes[1] * sizes[2] * sizes[3])
    emulator_fail("cuDNN: a tensor that is not channels last is not emulated");
  return (tensor){type == CUDNN_BF16, sizes[0], sizes[1], sizes[2], sizes[3], number(d, TENSOR_UNIQUE_ID, 0)};
}

static convolution convolution_of(const description *d) {
  int64_t padding = number(d, CONVOLUTION_PRE_PADDINGS, 0);
  for (int i = 0; i < 2; ++i)
    if (number(d, CONVOLUTION_DILATIONS, i) != 1 || number(d, CONVOLUTION_FILTER_STRIDES, i) != 1 ||
        number(d, CONVOLUTION_PRE_PADDINGS, i) != padding || number(d, CONVOLUTION_POST_PADDINGS, i) != padding)
      emulator_fail("cuDNN: this convolution is not emulated");
  if (choice(d, CONVOLUTION_COMP_TYPE) != CUDNN_FLOAT || choice(d, CONVOLUTION_CONV_MODE) != 1 ||
      number(d, CONVOLUTION_SPATIAL_DIMS, 0) != 2)
    emulator_fail("cuDNN: this convolution is not emulated");
  return (convolution){padding};
}

static void *pointer(const description *pack, int id) {
  const attribute *ids = find(pack, VARIANT_PACK_UNIQUE_IDS), *at = find(pack, VARIANT_PACK_DATA_POINTERS);
  if (at->type != 6 || ids->count != at->count) emulator_fail("cuDNN: the pack's pointers");
  for (int i = 0; i < ids->count; ++i)
    if (((const int64_t *)ids->data)[i] == id) return ((void *const *)at->data)[i];
  emulator_fail("cuDNN: tensor %d is not in the pack", id);
}

static size_t count(const tensor *t) { return (size_t)t->n * t->c * t->h * t->w; }

static void check(const tensor *x, const tensor *w, const convolution *v, const tensor *y) {
  if (x->n != y->n || x->c != w->c || w->n != y->c || y->h != x->h + 2 * v->padding + 1 - w->h ||
      y->w != x->w + 2 * v->padding + 1 - w->w || x->bf16 != w->bf16 || x->bf16 != y->bf16)
    emulator_fail("cuDNN: the tensors do not fit one another");
  if (x->c % (x->bf16 ? 8 : 4) || y->c % (x->bf16 ? 8 : 4))
    emulator_fail("cuDNN: %d and %d channels are not padded", x->c, y->c);
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

typedef struct {
  description *plan, pack;
} execution;
static void execute(void *data);

result cudnnBackendExecute(void *h, description *plan, description *pack) {
  if (plan->kind != EXECUTION_PLAN || !plan->finalized || pack->kind != VARIANT_PACK || !pack->finalized)
    emulator_fail("cuDNN: no plan or no pack");
  const description *configuration = part(plan, EXECUTION_PLAN_ENGINE_CONFIG, ENGINECFG);
  if (configuration->engine == UNORDERED) emulator_fail("cuDNN: an engine without a fixed order is used");
  if (configuration->engine == LARGE) emulator_fail("cuDNN: an engine without its workspace is used");
  if (configuration->engine == FAILING) return EXECUTION_FAILED;
  execution e = {plan, *pack};
  if (!emulator_record(execute, &e, sizeof e)) execute(&e);
  return SUCCESS;
}

static void execute(void *data) {
  const execution *e = data;
  const description *pack = &e->pack, *configuration = part(e->plan, EXECUTION_PLAN_ENGINE_CONFIG, ENGINECFG);
  const description *operation = *(description *const *)find(configuration->graph, OPERATIONGRAPH_OPS)->data;
  // Where alpha is; then beta, the convolution, and the tensors.
  int first, kind = operation->kind;
  switch (kind) {
    case FORWARD: first = FORWARD_ALPHA; break;
    case BACKWARD_DATA: first = BACKWARD_DATA_ALPHA; break;
    case BACKWARD_FILTER: first = BACKWARD_FILTER_ALPHA; break;
    default: emulator_fail("cuDNN: operation %d is not emulated", kind);
  }
  if (*(const float *)find(operation, first)->data != 1.0f || *(const float *)find(operation, first + 1)->data != 0.0f)
    emulator_fail("cuDNN: factors");
  convolution cv = convolution_of(part(operation, first + 2, CONVOLUTION));
  // In the order of the numbers: W, X, Y forward; W, DX, DY for the data; DW, X, DY for the filter.
  tensor tw = tensor_of(part(operation, first + 3, TENSOR)), tx = tensor_of(part(operation, first + 4, TENSOR)),
         ty = tensor_of(part(operation, first + 5, TENSOR));
  const tensor *x = &tx, *w = &tw, *y = &ty;
  check(x, w, &cv, y);
  void *workspace = *(void *const *)find(pack, VARIANT_PACK_WORKSPACE)->data;
  emulator_check(workspace, WORKSPACE, "cuDNN's workspace");
  memset(workspace, 0x5A, WORKSPACE);
  void *xp = pointer(pack, x->id), *wp = pointer(pack, w->id), *yp = pointer(pack, y->id);
  float *X = kind == BACKWARD_DATA ? calloc(count(x) + 1, sizeof *X) : widened(xp, x->bf16, count(x), "x");
  float *W = kind == BACKWARD_FILTER ? calloc(count(w) + 1, sizeof *W) : widened(wp, w->bf16, count(w), "weight");
  float *Y = kind == FORWARD ? calloc(count(y) + 1, sizeof *Y) : widened(yp, y->bf16, count(y), "y");
  if (configuration->engine == TENSOR_CORES && !x->bf16) {
    if (kind != BACKWARD_DATA) to_tf32(X, count(x));
    if (kind != BACKWARD_FILTER) to_tf32(W, count(w));
    if (kind != FORWARD) to_tf32(Y, count(y));
  }
  if (kind == FORWARD) {
    forward(X, W, Y, x, w, &cv, y);
    put(yp, y->bf16, Y, count(y), "y");
  } else if (kind == BACKWARD_DATA) {
    backward_data(X, W, Y, x, w, &cv, y);
    put(xp, x->bf16, X, count(x), "x");
  } else {
    backward_filter(X, W, Y, x, w, &cv, y);
    put(wp, w->bf16, W, count(w), "weight");
  }
  free(X), free(W), free(Y);
}

// ---- cuBLASLt ----

static result make(void **made, size_t bytes) { return *made = calloc(1, bytes), SUCCESS; }
static result destroy(void *made) { return free(made), SUCCESS; }

enum { REAL_F32 = 0, REAL_BF16 = 14, COMPUTE_F32 = 68, COMPUTE_TF32 = 77 };

typedef struct {
  int bf16;
  uint64_t rows, columns;
  int64_t leading;
} matrix;
typedef struct {
  int compute, transposed[2];
} product;

size_t cublasLtGetVersion(void) { return 130000; }
size_t cublasLtGetCudartVersion(void) { return 13000; }
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
  // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, and the least alignments of A, B, C and D.
  if (!(attribute == 1 && bytes == 8) && !(attribute >= 5 && attribute <= 8 && bytes == 4))
    emulator_fail("cuBLASLt: preference %d", attribute);
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

typedef struct {
  product p;
  matrix a, b, d;
  const void *ap, *bp;
  void *dp, *workspace;
  size_t bytes;
  float beta;
} matmul;
static void run_matmul(void *data);

result cublasLtMatmul(void *h, product *p, const float *alpha, const void *ap, matrix *a, const void *bp,
                      matrix *b, const float *beta, const void *cp, matrix *c, void *dp, matrix *d,
                      const uint64_t *algorithm, void *workspace, size_t bytes, void *stream) {
  uint64_t depth;
  shape(p, a, b, d, &depth);
  if (algorithm[0] != (d->rows ^ d->columns << 20 ^ depth << 40))
    emulator_fail("cuBLASLt: the algorithm was chosen for another product");
  if (*alpha != 1.0f || (*beta != 0.0f && (*beta != 1.0f || d->bf16)) || cp != dp || c != d)
    emulator_fail("cuBLASLt: factors");
  matmul m = {*p, *a, *b, *d, ap, bp, dp, workspace, bytes, *beta};
  if (!emulator_record(run_matmul, &m, sizeof m)) run_matmul(&m);
  return SUCCESS;
}

static void run_matmul(void *data) {
  const matmul *m = data;
  const product *p = &m->p;
  const matrix *a = &m->a, *b = &m->b, *d = &m->d;
  uint64_t depth;
  shape(p, a, b, d, &depth);
  emulator_check(m->workspace, m->bytes, "cuBLASLt's workspace");
  float *A = widened(m->ap, a->bf16, (size_t)a->leading * a->columns, "a");
  float *B = widened(m->bp, b->bf16, (size_t)b->leading * b->columns, "b");
  if (p->compute == COMPUTE_TF32 && !a->bf16) {
    to_tf32(A, (size_t)a->leading * a->columns);
    to_tf32(B, (size_t)b->leading * b->columns);
  }
  float *D = calloc(d->rows * d->columns + 1, sizeof *D);
  multiply(A, B, D, p, a, b, d, depth);
  if (m->beta != 0.0f) {
    if (d->leading != (int64_t)d->rows) emulator_fail("cuBLASLt: adding to a part of a matrix is not emulated");
    emulator_check(m->dp, d->rows * d->columns * 4, "c");
    for (uint64_t i = 0; i < d->rows * d->columns; ++i) D[i] += ((const float *)m->dp)[i];
  }
  for (uint64_t j = 0; j < d->columns; ++j)
    put((char *)m->dp + j * d->leading * (d->bf16 ? 2 : 4), d->bf16, D + j * d->rows, d->rows, "d");
  free(A), free(B), free(D);
}
