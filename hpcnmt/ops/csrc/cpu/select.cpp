#include "select.h"

#include <cmath>
#include <cstring>

namespace hpcnmt::cpu {
namespace {

inline float value_of(float x) { return x; }
inline float value_of(bfloat x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace

template <class G>
Selected count_large(const G* gradient, const float* residual, float threshold, std::int64_t size) {
  Selected found{0, 0};
  for (std::int64_t i = 0; i < size; ++i) {
    const float magnitude = std::fabs(value_of(gradient[i]) + residual[i]);
    const bool fine = magnitude < INFINITY;
    found.kept += fine && magnitude >= threshold;
    found.bad += !fine;
  }
  return found;
}

template <class G>
void move_large(
    G* gradient, float* residual, float threshold, float* values, std::int64_t* indices, std::int64_t room, std::int64_t begin, std::int64_t size) {
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    const float sum = value_of(gradient[i]) + residual[i];
    const float magnitude = std::fabs(sum);
    gradient[i] = 0;
    if (!(magnitude < INFINITY)) continue;
    if (magnitude >= threshold && kept < room) {
      values[kept] = sum;
      indices[kept++] = begin + i;
      residual[i] = 0;
    } else {
      residual[i] = sum;
    }
  }
}

template Selected count_large<float>(const float*, const float*, float, std::int64_t);
template Selected count_large<bfloat>(const bfloat*, const float*, float, std::int64_t);
template void move_large<float>(float*, float*, float, float*, std::int64_t*, std::int64_t, std::int64_t, std::int64_t);
template void move_large<bfloat>(bfloat*, float*, float, float*, std::int64_t*, std::int64_t, std::int64_t, std::int64_t);

}  // namespace hpcnmt::cpu
