// The CPU kernels for AVX-512 (F, DQ, BW, VL); setup.py compiles this file with -mavx512f -mavx512dq -mavx512bw -mavx512vl.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "kernels.h"

#include "../formulas.h"

#if defined(__x86_64__)
namespace hpcnmt::cpu {
namespace avx512 {
namespace {
#include "vector_avx512.h"
#include "kernels.inc"
}  // namespace
}  // namespace avx512

const Table& avx512_table() { return avx512::table_of("avx512"); }

}  // namespace hpcnmt::cpu

#endif
