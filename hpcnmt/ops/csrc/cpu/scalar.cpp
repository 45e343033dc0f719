// The CPU kernels for any processor.
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#include "kernels.h"

#include "../formulas.h"

namespace hpcnmt::cpu {
namespace scalar {
namespace {
#include "vector_scalar.h"
#include "kernels.inc"
}  // namespace
}  // namespace scalar

const Table& scalar_table() { return scalar::table_of("scalar"); }

}  // namespace hpcnmt::cpu
