// An emulated GPU: as much of CUDA's driver, NVRTC, cuBLAS and cuRAND as the project reaches, for a processor,
// so that everything around the GPU's arithmetic can be tested on machines without one. It says nothing
// about speed, and nothing about what the real libraries do beyond their documentation.
//
// Memory is filled with NaN when it is handed out, and has guards on both sides, which are checked. A CUDA graph keeps the memory
// that is allocated in it.
// CUDA_EMULATOR_DEVICES is the number of devices (1), CUDA_EMULATOR_MEMORY the bytes of memory (8 GiB),
// CUDA_EMULATOR_CAPABILITY the compute capability (90, for 9.0), CUDA_EMULATOR_DRIVER the driver's CUDA (13000),
// CUDA_EMULATOR_NVRTC the major version of NVRTC (13), CUDA_EMULATOR_POOLS whether there are memory pools (1),
// CUDA_EMULATOR_GRAPHS whether CUDA graphs can be captured (1). With CUDA_EMULATOR_CALLS=1 the number of calls is printed at the end.

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>

#include "emulator.h"

enum {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_FOUND = 500,
  CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
};
typedef int result;

unsigned emulator_index;
unsigned short emulator_sizes[16];

void emulator_fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("emulated GPU: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  abort();
}

// ---- Device and context ----

static int number(const char *variable, int otherwise) {
  const char *text = getenv(variable);
  return text ? atoi(text) : otherwise;
}

static int devices(void) { return number("CUDA_EMULATOR_DEVICES", 1); }
static int pools(void) { return number("CUDA_EMULATOR_POOLS", 1); }

static void print_calls(void);
result cuInit(unsigned flags) {
  static int once;
  if (number("CUDA_EMULATOR_CALLS", 0) && !once++) atexit(print_calls);
  return devices() > 0 ? SUCCESS : NO_DEVICE;
}
result cuDriverGetVersion(int *version) { return *version = number("CUDA_EMULATOR_DRIVER", 13000), SUCCESS; }
result cuDeviceGetCount(int *count) { return *count = devices(), SUCCESS; }
result cuDeviceGet(int *device, int number) {
  if (number < 0 || number >= devices()) return INVALID_DEVICE;
  return *device = number, SUCCESS;
}
result cuDeviceGetName(char *name, int length, int device) {
  snprintf(name, length, "emulated GPU");
  return SUCCESS;
}
result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 75: *value = number("CUDA_EMULATOR_CAPABILITY", 90) / 10; break; // Compute capability, major
    case 76: *value = number("CUDA_EMULATOR_CAPABILITY", 90) % 10; break; // Minor
    case 115: *value = pools(); break; // Memory pools
    default: *value = 0;
  }
  return SUCCESS;
}
static int context;
static _Thread_local void *current;
result cuDevicePrimaryCtxRetain(void **made, int device) { return *made = &context, SUCCESS; }
result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
result cuCtxSetCurrent(void *to) { return current = to, SUCCESS; }
result cuCtxGetCurrent(void **to) { return *to = current, SUCCESS; }
result cuCtxSynchronize(void) { return SUCCESS; }
result cuEventCreate(void **event, unsigned flags) { return *event = &context, SUCCESS; }
result cuEventDestroy_v2(void *event) { return SUCCESS; }
static const char *name_of(result code) {
  switch (code) {
    case SUCCESS: return "CUDA_SUCCESS";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    default: return "CUDA_ERROR";
  }
}
result cuGetErrorName(result code, const char **text) { return *text = name_of(code), SUCCESS; }
result cuGetErrorString(result code, const char **text) { return *text = name_of(code), SUCCESS; }

// ---- CUDA graphs ----

// A call that is kept, with its data.
typedef struct call {
  void (*run)(void *data);
  struct call *next;
  // Aligned for any type.
  _Alignas(16) char data[];
} call;

typedef struct graph {
  call *first, **end;
  int invalid;
} graph;

// The graph that the thread captures.
static _Thread_local graph *captured;

static struct { unsigned long launches, operations, allocations, frees, copies, graphs; } calls;

static void print_calls(void) {
  fprintf(stderr, "emulated GPU: %lu kernels, %lu operations, %lu allocations, %lu frees, %lu copies, %lu graphs\n",
          calls.launches, calls.operations, calls.allocations, calls.frees, calls.copies, calls.graphs);
}

static int record(void (*run)(void *data), const void *data, size_t bytes) {
  if (!captured) return 0;
  call *c = malloc(sizeof *c + bytes);
  c->run = run;
  c->next = 0;
  memcpy(c->data, data, bytes);
  *captured->end = c;
  captured->end = &c->next;
  return 1;
}

int emulator_record(void (*run)(void *data), const void *data, unsigned long bytes) {
  ++calls.operations;
  return record(run, data, bytes);
}

// What the host would have to wait for cannot be captured. After it, every call fails until the capture is ended.
static result waits(void) { return captured ? (captured->invalid = 1, CAPTURE_UNSUPPORTED) : SUCCESS; }
static int is_invalid(void) { return captured && captured->invalid; }

result cuStreamSynchronize(void *stream) { return waits(); }
result cuStreamIsCapturing(void *stream, int *status) { return *status = captured != 0, SUCCESS; }
result cuStreamBeginCapture_v2(void *stream, int mode) {
  if (!number("CUDA_EMULATOR_GRAPHS", 1)) return CAPTURE_UNSUPPORTED;
  if (captured) return INVALID_VALUE;
  captured = calloc(1, sizeof *captured);
  captured->end = &captured->first;
  return SUCCESS;
}
result cuGraphInstantiateWithFlags(graph **made, graph *from, unsigned long long flags) { return *made = from, SUCCESS; }
result cuGraphUpload(graph *g, void *stream) { return SUCCESS; }
result cuGraphLaunch(graph *g, void *stream) {
  ++calls.graphs;
  for (call *c = g->first; c; c = c->next) c->run(c->data);
  return SUCCESS;
}
result cuGraphExecDestroy(graph *g) { return SUCCESS; }
result cuDeviceGraphMemTrim(int device) { return SUCCESS; }

// ---- Memory ----

#define GUARD 256
#define GUARD_BYTE 0xA5

typedef struct block {
  unsigned char *memory;
  size_t bytes;
  // The graph that allocated it, and whether it frees it.
  graph *owner;
  int freed;
  struct block *next;
} block;

static block *blocks;
static size_t used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t total(void) {
  const char *text = getenv("CUDA_EMULATOR_MEMORY");
  return text ? strtoull(text, 0, 10) : (size_t)8 << 30;
}

static void check_guards(const block *b) {
  for (int i = 0; i < GUARD; ++i)
    if (b->memory[-1 - i] != GUARD_BYTE || b->memory[b->bytes + i] != GUARD_BYTE)
      emulator_fail("something wrote beside a block of %zu bytes", b->bytes);
}

static block *find(const void *address) {
  const unsigned char *at = address;
  for (block *b = blocks; b; b = b->next)
    if (at >= b->memory && at < b->memory + (b->bytes ? b->bytes : 1)) return b;
  return 0;
}

void emulator_check(const void *address, unsigned long bytes, const char *what) {
  pthread_mutex_lock(&lock);
  block *b = find(address);
  if (bytes && (!b || (const unsigned char *)address + bytes > b->memory + b->bytes))
    emulator_fail("%s: %lu bytes at %p are not all there", what, bytes, address);
  pthread_mutex_unlock(&lock);
}

static void fill(void *data) {
  block *b = *(block **)data;
  memset(b->memory, 0xFF, b->bytes); // NaN in every type of float.
}

static result allocate(uint64_t *address, size_t bytes) {
  if (!bytes) return INVALID_VALUE;
  if (is_invalid()) return CAPTURE_INVALIDATED;
  ++calls.allocations;
  pthread_mutex_lock(&lock);
  if (used + bytes > total()) {
    pthread_mutex_unlock(&lock);
    return OUT_OF_MEMORY;
  }
  void *raw;
  if (posix_memalign(&raw, 256, bytes + 2 * GUARD)) emulator_fail("the machine has no memory");
  block *b = malloc(sizeof *b);
  *b = (block){(unsigned char *)raw + GUARD, bytes, captured, 0, blocks};
  memset(raw, GUARD_BYTE, GUARD);
  if (!record(fill, &b, sizeof b)) fill(&b);
  memset(b->memory + bytes, GUARD_BYTE, GUARD);
  blocks = b;
  used += bytes;
  *address = (uint64_t)b->memory;
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

static void free_in_graph(void *data) {
  check_guards(*(block **)data);
  fill(data);
}

static void free_block(block **at) {
  block *b = *at;
  check_guards(b);
  *at = b->next;
  used -= b->bytes;
  free(b->memory - GUARD);
  free(b);
}

static result release(uint64_t address) {
  ++calls.frees;
  pthread_mutex_lock(&lock);
  block **at = &blocks;
  while (*at && (uint64_t)(*at)->memory != address) at = &(*at)->next;
  block *b = *at;
  if (!b || b->freed) emulator_fail("memory is given back that was not handed out");
  if (b->owner != captured) emulator_fail("a graph does not free the memory that it allocates, or frees other memory");
  b->freed = record(free_in_graph, &b, sizeof b);
  if (!b->freed) free_block(at);
  pthread_mutex_unlock(&lock);
  return is_invalid() ? CAPTURE_INVALIDATED : SUCCESS;
}

result cuGraphDestroy(graph *g) {
  pthread_mutex_lock(&lock);
  for (block **at = &blocks; *at;) {
    if ((*at)->owner == g) free_block(at);
    else at = &(*at)->next;
  }
  pthread_mutex_unlock(&lock);
  for (call *c = g->first, *next; c; c = next) next = c->next, free(c);
  free(g);
  return SUCCESS;
}
result cuStreamEndCapture(void *stream, graph **made) {
  graph *g = captured;
  if (!g) return INVALID_VALUE;
  captured = 0;
  *made = g->invalid ? 0 : g;
  return g->invalid ? cuGraphDestroy(g), CAPTURE_INVALIDATED : SUCCESS;
}

result cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
  if (!pools()) emulator_fail("there is no memory pool");
  return allocate(address, bytes);
}
result cuMemAlloc_v2(uint64_t *address, size_t bytes) { return allocate(address, bytes); }
result cuMemFreeAsync(uint64_t address, void *stream) { return release(address); }
result cuMemFree_v2(uint64_t address) { return release(address); }
result cuDeviceGetDefaultMemPool(void **pool, int device) {
  if (!pools()) emulator_fail("there is no memory pool");
  return *pool = &blocks, SUCCESS;
}
result cuMemPoolTrimTo(void *pool, size_t bytes) { return SUCCESS; }
result cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
  // The threshold above which memory is given back to the system.
  return attribute == 4 ? SUCCESS : INVALID_VALUE;
}
result cuMemGetInfo_v2(size_t *left, size_t *all) {
  *all = total();
  *left = *all - used;
  return SUCCESS;
}

typedef struct {
  void *to;
  const void *from;
  unsigned char value;
  size_t bytes;
} copy;
static void run_memset(void *data) {
  const copy *c = data;
  memset(c->to, c->value, c->bytes);
}
static void run_copy(void *data) {
  const copy *c = data;
  memcpy(c->to, c->from, c->bytes);
}
static result copied(void (*run)(void *), copy c) {
  ++calls.copies;
  if (!record(run, &c, sizeof c)) run(&c);
  return SUCCESS;
}
result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  emulator_check((void *)to, bytes, "memset");
  return copied(run_memset, (copy){(void *)to, 0, value, bytes});
}
result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  if (waits()) return CAPTURE_UNSUPPORTED;
  emulator_check((void *)to, bytes, "copy to the device");
  return copied(run_copy, (copy){(void *)to, from, 0, bytes});
}
result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  if (waits()) return CAPTURE_UNSUPPORTED;
  emulator_check((void *)from, bytes, "copy from the device");
  return copied(run_copy, (copy){to, (void *)from, 0, bytes});
}
result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  emulator_check((void *)to, bytes, "copy on the device");
  emulator_check((void *)from, bytes, "copy on the device");
  return copied(run_copy, (copy){(void *)to, (void *)from, 0, bytes});
}

// ---- NVRTC and kernels ----

extern const emulator_kernel emulator_program_f32_4[], emulator_program_f32_1[], emulator_program_bf16_8[],
    emulator_program_bf16_1[];

static const struct {
  const char *name;
  const emulator_kernel *kernels;
} programs[] = {
    {"emulated float 4", emulator_program_f32_4},
    {"emulated float 1", emulator_program_f32_1},
    {"emulated bf16 8", emulator_program_bf16_8},
    {"emulated bf16 1", emulator_program_bf16_1},
};

typedef struct { char cubin[64]; } program;

result nvrtcCreateProgram(program **made, const char *source, const char *name, int headers,
                          const char *const *contents, const char *const *names) {
  return *made = calloc(1, sizeof(program)), SUCCESS;
}
result nvrtcDestroyProgram(program **made) {
  free(*made);
  return *made = 0, SUCCESS;
}
result nvrtcCompileProgram(program *made, int count, const char *const *options) {
  int bf16 = 0, pack = 0, architecture = 0;
  for (int i = 0; i < count; ++i) {
    if (!strcmp(options[i], "-DBF16")) bf16 = 1;
    else if (!strncmp(options[i], "-DPACK=", 7)) pack = atoi(options[i] + 7);
    else if (!strncmp(options[i], "--gpu-architecture=sm_", 22)) architecture = atoi(options[i] + 22);
    else emulator_fail("NVRTC does not know the option %s", options[i]);
  }
  if (!architecture || !pack) emulator_fail("NVRTC needs an architecture and PACK");
  snprintf(made->cubin, sizeof made->cubin, "emulated %s %d", bf16 ? "bf16" : "float", pack);
  return SUCCESS;
}
result nvrtcGetCUBINSize(program *made, size_t *bytes) { return *bytes = strlen(made->cubin) + 1, SUCCESS; }
result nvrtcGetCUBIN(program *made, char *to) { return strcpy(to, made->cubin), SUCCESS; }
result nvrtcVersion(int *major, int *minor) { return *major = number("CUDA_EMULATOR_NVRTC", 13), *minor = 0, SUCCESS; }
result nvrtcGetNumSupportedArchs(int *count) { return *count = 2, SUCCESS; }
result nvrtcGetSupportedArchs(int *architectures) { return architectures[0] = 75, architectures[1] = 90, SUCCESS; }
result nvrtcGetProgramLogSize(program *made, size_t *bytes) { return *bytes = 1, SUCCESS; }
result nvrtcGetProgramLog(program *made, char *to) { return *to = 0, SUCCESS; }

result cuModuleLoadData(void **module, const void *cubin) {
  for (unsigned i = 0; i < sizeof programs / sizeof *programs; ++i)
    if (!strcmp(cubin, programs[i].name)) return *module = (void *)programs[i].kernels, SUCCESS;
  emulator_fail("candle's own kernels are not emulated");
}
result cuModuleUnload(void *module) { return SUCCESS; }
result cuModuleGetFunction(void **function, void *module, const char *name) {
  for (const emulator_kernel *k = module; k->name; ++k)
    if (!strcmp(k->name, name)) return *function = (void *)k, SUCCESS;
  return NOT_FOUND;
}

// A launch that is kept: the arguments follow one another.
typedef struct {
  const emulator_kernel *kernel;
  unsigned threads;
  unsigned short sizes[16];
  char values[2048];
} launch;
static void run_kernel(const emulator_kernel *k, unsigned threads, void **arguments) {
  pthread_mutex_lock(&lock);
  for (emulator_index = 0; emulator_index < threads; ++emulator_index) k->call(arguments);
  pthread_mutex_unlock(&lock);
}
static void run_launch(void *data) {
  launch *l = data;
  void *arguments[16];
  char *at = l->values;
  for (unsigned i = 0; i < 16; ++i) arguments[i] = at, at += (l->sizes[i] + 7) / 8 * 8;
  run_kernel(l->kernel, l->threads, arguments);
}
static int record_launch(const emulator_kernel *k, unsigned threads, void **arguments) {
  if (!captured) return 0;
  launch l = {k, threads};
  pthread_mutex_lock(&lock);
  // The thread beyond the last returns at once, and tells the sizes of the arguments.
  memset(emulator_sizes, 0, sizeof emulator_sizes);
  emulator_index = ~0u;
  k->call(arguments);
  memcpy(l.sizes, emulator_sizes, sizeof l.sizes);
  pthread_mutex_unlock(&lock);
  char *at = l.values;
  for (unsigned i = 0; i < 16; ++i) {
    if (l.sizes[i]) memcpy(at, arguments[i], l.sizes[i]);
    at += (l.sizes[i] + 7) / 8 * 8;
  }
  return record(run_launch, &l, sizeof l);
}

result cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **arguments,
                      void **extra) {
  const emulator_kernel *k = function;
  if (!current) emulator_fail("%s: no context is current", k->name);
  if (grid_y * grid_z * block_y * block_z != 1 || block_x > 1024 || !grid_x || !block_x || shared || extra)
    emulator_fail("%s: a launch that is not emulated", k->name);
  if (is_invalid()) return CAPTURE_INVALIDATED;
  ++calls.launches;
  if (!record_launch(k, grid_x * block_x, arguments)) run_kernel(k, grid_x * block_x, arguments);
  return SUCCESS;
}

// ---- What candle opens and the project does not use ----

static int handle;
result cublasCreate_v2(void **made) { return *made = &handle, SUCCESS; }
result cublasDestroy_v2(void *made) { return SUCCESS; }
result cublasSetStream_v2(void *made, void *stream) { return SUCCESS; }
result curandCreateGenerator(void **made, int kind) { return *made = &handle, SUCCESS; }
result curandDestroyGenerator(void *made) { return SUCCESS; }
result curandSetStream(void *made, void *stream) { return SUCCESS; }
result curandSetPseudoRandomGeneratorSeed(void *made, unsigned long long seed) { return SUCCESS; }
result curandSetGeneratorOffset(void *made, unsigned long long offset) { return SUCCESS; }
