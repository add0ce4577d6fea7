// An emulated GPU: as much of CUDA's driver, NVRTC, cuBLAS and cuRAND as the project reaches, for a processor,
// so that everything around the GPU's arithmetic can be tested on machines without one. It says nothing
// about speed, and nothing about what the real libraries do beyond their documentation.
//
// Memory is filled with NaN when it is handed out, and has guards on both sides, which are checked.
// CUDA_EMULATOR_DEVICES is the number of devices (1), CUDA_EMULATOR_MEMORY the bytes of memory (8 GiB),
// CUDA_EMULATOR_CAPABILITY the compute capability (90, for 9.0), CUDA_EMULATOR_DRIVER the driver's CUDA (13000),
// CUDA_EMULATOR_NVRTC the major version of NVRTC (13), CUDA_EMULATOR_POOLS whether there are memory pools (1).

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>

#include "emulator.h"

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_FOUND = 500 };
typedef int result;

unsigned emulator_index;

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

result cuInit(unsigned flags) { return devices() > 0 ? SUCCESS : NO_DEVICE; }
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
result cuStreamSynchronize(void *stream) { return SUCCESS; }
result cuStreamIsCapturing(void *stream, int *status) { return *status = 0, SUCCESS; }
result cuEventCreate(void **event, unsigned flags) { return *event = &context, SUCCESS; }
result cuEventDestroy_v2(void *event) { return SUCCESS; }
static const char *name_of(result code) {
  switch (code) {
    case SUCCESS: return "CUDA_SUCCESS";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    default: return "CUDA_ERROR";
  }
}
result cuGetErrorName(result code, const char **text) { return *text = name_of(code), SUCCESS; }
result cuGetErrorString(result code, const char **text) { return *text = name_of(code), SUCCESS; }

// ---- Memory ----

#define GUARD 256
#define GUARD_BYTE 0xA5

typedef struct block {
  unsigned char *memory;
  size_t bytes;
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

static result allocate(uint64_t *address, size_t bytes) {
  if (!bytes) return INVALID_VALUE;
  pthread_mutex_lock(&lock);
  if (used + bytes > total()) {
    pthread_mutex_unlock(&lock);
    return OUT_OF_MEMORY;
  }
  void *raw;
  if (posix_memalign(&raw, 256, bytes + 2 * GUARD)) emulator_fail("the machine has no memory");
  block *b = malloc(sizeof *b);
  *b = (block){(unsigned char *)raw + GUARD, bytes, blocks};
  memset(raw, GUARD_BYTE, GUARD);
  memset(b->memory, 0xFF, bytes); // NaN in every type of float.
  memset(b->memory + bytes, GUARD_BYTE, GUARD);
  blocks = b;
  used += bytes;
  *address = (uint64_t)b->memory;
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

static result release(uint64_t address) {
  pthread_mutex_lock(&lock);
  for (block **at = &blocks; *at; at = &(*at)->next)
    if ((uint64_t)(*at)->memory == address) {
      block *b = *at;
      check_guards(b);
      *at = b->next;
      used -= b->bytes;
      free(b->memory - GUARD);
      free(b);
      pthread_mutex_unlock(&lock);
      return SUCCESS;
    }
  emulator_fail("memory is given back that was not handed out");
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
result cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
  // The threshold above which memory is given back to the system.
  return attribute == 4 ? SUCCESS : INVALID_VALUE;
}
result cuMemGetInfo_v2(size_t *left, size_t *all) {
  *all = total();
  *left = *all - used;
  return SUCCESS;
}
result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  emulator_check((void *)to, bytes, "memset");
  memset((void *)to, value, bytes);
  return SUCCESS;
}
result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  emulator_check((void *)to, bytes, "copy to the device");
  memcpy((void *)to, from, bytes);
  return SUCCESS;
}
result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  emulator_check((void *)from, bytes, "copy from the device");
  memcpy(to, (void *)from, bytes);
  return SUCCESS;
}
result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  emulator_check((void *)to, bytes, "copy on the device");
  emulator_check((void *)from, bytes, "copy on the device");
  memcpy((void *)to, (void *)from, bytes);
  return SUCCESS;
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
result cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **arguments,
                      void **extra) {
  const emulator_kernel *k = function;
  if (!current) emulator_fail("%s: no context is current", k->name);
  if (grid_y * grid_z * block_y * block_z != 1 || block_x > 1024 || !grid_x || !block_x || shared || extra)
    emulator_fail("%s: a launch that is not emulated", k->name);
  unsigned threads = grid_x * block_x;
  pthread_mutex_lock(&lock);
  for (emulator_index = 0; emulator_index < threads; ++emulator_index) k->call(arguments);
  pthread_mutex_unlock(&lock);
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
