// What the files of the emulator share.
#pragma once

typedef struct {
  const char *name;
  void (*call)(void **arguments);
} emulator_kernel;

// The number of the thread that a kernel believes to be.
extern unsigned emulator_index;

// What a thread reads its arguments with. The sizes are known when a kernel was called once.
extern unsigned short emulator_sizes[16];
static inline void *emulator_argument(void **arguments, unsigned number, unsigned size) {
  emulator_sizes[number] = size;
  return arguments[number];
}

// Counts a call of a library that computes something. While a CUDA graph is captured, keeps the call and a copy of its data for
// the graph, and returns true: nothing is computed then.
int emulator_record(void (*run)(void *data), const void *data, unsigned long bytes);

// Ends the process where a library was misused, with a message.
void emulator_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

// Checks that memory on the emulated device holds `bytes` from `address` on.
void emulator_check(const void *address, unsigned long bytes, const char *what);
