// Stands in for Windows' bcryptprimitives.dll, which Wine lacks before version 9. Rust's standard library takes random
// bytes from its one function, here from the generator of advapi32, which Wine has.

#include <windows.h>
#include <ntsecapi.h> // RtlGenRandom

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length)
{
    return RtlGenRandom(buffer, (ULONG)length);
}
