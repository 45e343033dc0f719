// The CPU kernels: raw pointers and sizes, one table of functions for each instruction set, chosen at run time.
//
// Each function handles one block [0, size) in the calling thread; bind.cpp cuts vectors into blocks of fixed size, so that sums do
// not depend on the number of threads. `bfloat` is the bit pattern of a bfloat16. A null pointer = the optional vector is absent.
#pragma once

#include <cstdint>

namespace hpcnmt::cpu {

using bfloat = std::uint16_t;

struct Stats {
  double sum_squares;
  std::int64_t bad;  // elements left out because a result would not have been finite
};

struct StepState {
  float *parameters, *moment1, *moment2;  // moment2 null: SGD with momentum instead of Adam
  float* out;                             // where new parameters go (may equal `parameters`)
  float* ema;                             // null: no moving average
  float* accumulator;                     // null: none
  bool stream;                            // write `out` past the caches
};

// G is float or bfloat.
struct Table {
  const char* name;
  Stats (*accumulate_f)(float* accumulator, float* gradient, float scale, bool zero, std::int64_t size);
  Stats (*accumulate_b)(float* accumulator, bfloat* gradient, float scale, bool zero, std::int64_t size);
  Stats (*sum_squares)(const float* values, std::int64_t size);
  Stats (*step_f)(const StepState& state, float* gradient, bool zero, const float* factors, std::int64_t size);
  Stats (*step_b)(const StepState& state, bfloat* gradient, bool zero, const float* factors, std::int64_t size);
  std::int64_t (*pack_f)(float* accumulator, float* wire, float* residual, float scale, bool stream, std::int64_t size);
  std::int64_t (*pack_b)(float* accumulator, bfloat* wire, float* residual, float scale, bool stream, std::int64_t size);
};

const Table& scalar_table();
#if defined(__x86_64__)
const Table& avx2_table();
const Table& avx512_table();
#endif
// The widest table that this processor runs; HPCNMT_CPU_KERNELS=scalar|avx2|avx512 names another.
const Table& best_table();

}  // namespace hpcnmt::cpu
