// Threshold selection for gradient dropping (Aji & Heafield 2017, D17-1045): raw pointers, one block at a time, any processor.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace hpcnmt::cpu {

struct Selected {
  std::int64_t kept, bad;
};

// Counts the elements of [0, size) with |gradient + residual| >= threshold, and those that are not finite (they are never kept).
template <class G>
Selected count_large(const G* gradient, const float* residual, float threshold, std::int64_t size);

// Writes the first `room` of them to values and indices (begin = index of element 0); the others become the new residual. Zeroes the
// gradient. A non-finite sum leaves its residual as it was.
template <class G>
void move_large(
    G* gradient, float* residual, float threshold, float* values, std::int64_t* indices, std::int64_t room, std::int64_t begin, std::int64_t size);

}  // namespace hpcnmt::cpu
