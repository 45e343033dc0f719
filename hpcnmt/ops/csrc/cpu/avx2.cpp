// The CPU kernels for AVX2 with FMA; setup.py compiles this file with -mavx2 -mfma.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "kernels.h"

#include "../formulas.h"

#if defined(__x86_64__)
namespace hpcnmt::cpu {
namespace avx2 {
namespace {
#include "vector_avx2.h"
#include "kernels.inc"
}  // namespace
}  // namespace avx2

const Table& avx2_table() { return avx2::table_of("avx2"); }

}  // namespace hpcnmt::cpu

#endif
