// What the files of the emulator share.
#pragma once

typedef struct {
  const char *name;
  void (*call)(void **arguments);
} emulator_kernel;

// The number of the thread that a kernel believes to be.
extern unsigned emulator_index;

// Ends the process where a library was misused, with a message.
void emulator_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

// Checks that memory on the emulated device holds `bytes` from `address` on.
void emulator_check(const void *address, unsigned long bytes, const char *what);
