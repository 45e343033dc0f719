// Chooses the table of kernels for this processor.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace hpcnmt::cpu {
namespace {

const Table& choose() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const char* name = std::getenv("HPCNMT_CPU_KERNELS");
  if (name != nullptr && std::strcmp(name, "scalar") == 0) return scalar_table();
  if (avx2 && name != nullptr && std::strcmp(name, "avx2") == 0) return avx2_table();
  if (avx512) return avx512_table();
  if (avx2) return avx2_table();
#endif
  return scalar_table();
}

}  // namespace

const Table& best_table() {
  static const Table& table = choose();
  return table;
}

}  // namespace hpcnmt::cpu
