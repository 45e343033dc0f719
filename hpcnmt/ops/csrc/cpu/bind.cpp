// Binds the CPU kernels to the operators hpcnmt::* (schemas: hpcnmt/ops/library.py). Cuts vectors into blocks of fixed size, shares them
// out over torch's threads, and adds the blocks' sums in order: results do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../checks.h"
#include "kernels.h"
#include "select.h"

// Found in the library's file before it is loaded (hpcnmt/ops/library.py): the torch that it was compiled against.
extern "C" __attribute__((used, visibility("default"))) const char hpcnmt_built_for[] = "hpcnmt-built-for-torch=" HPCNMT_TORCH_VERSION ";";

namespace hpcnmt::cpu {
namespace {

constexpr int64_t BLOCK = 16384;          // elements
constexpr int64_t STREAM_FROM = 1 << 20;  // elements: smaller vectors are worth keeping in the caches

template <class F>
void for_blocks(int64_t size, F&& function) {  // function(block, begin, length)
  at::parallel_for(0, (size + BLOCK - 1) / BLOCK, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * BLOCK;
      function(block, begin, std::min(BLOCK, size - begin));
    }
  });
}

template <class F>
void sum_blocks(int64_t size, const at::Tensor& stats, F&& function) {  // function(begin, length) -> Stats
  std::vector<Stats> parts((size + BLOCK - 1) / BLOCK);
  for_blocks(size, [&](int64_t block, int64_t begin, int64_t length) { parts[block] = function(begin, length); });
  double* result = stats.data_ptr<double>();
  double sum = 0;
  for (const Stats& part : parts) {
    sum += part.sum_squares;
    result[1] += static_cast<double>(part.bad);
  }
  result[0] = sum;
}

template <class F>
auto with_type(const at::Tensor& t, F&& function) {
  if (t.scalar_type() == at::kFloat) return function(t.data_ptr<float>());
  return function(reinterpret_cast<bfloat*>(t.data_ptr<at::BFloat16>()));
}

template <class T>
constexpr bool wide = std::is_same_v<T, float>;

void accumulate(const at::Tensor& accumulator, const at::Tensor& gradient, const at::Tensor& stats, double scale, bool zero_gradient) {
  check_vector(accumulator, "accumulator", accumulator);
  check_vector(gradient, "gradient", accumulator, true);
  check_stats(stats, accumulator);
  const Table& table = best_table();
  float* acc = accumulator.data_ptr<float>();
  const float factor = static_cast<float>(scale);
  with_type(gradient, [&](auto* grad) {
    sum_blocks(accumulator.numel(), stats, [&](int64_t begin, int64_t length) {
      if constexpr (wide<std::remove_pointer_t<decltype(grad)>>)
        return table.accumulate_f(acc + begin, grad + begin, factor, zero_gradient, length);
      else
        return table.accumulate_b(acc + begin, grad + begin, factor, zero_gradient, length);
    });
  });
}

void sum_squares(const at::Tensor& values, const at::Tensor& stats) {
  check_vector(values, "values", values);
  check_stats(stats, values);
  const float* data = values.data_ptr<float>();
  sum_blocks(values.numel(), stats, [&](int64_t begin, int64_t length) { return best_table().sum_squares(data + begin, length); });
}

void step(const at::Tensor& gradient, const at::Tensor& parameters, const at::Tensor& moment1, const OptionalTensor& moment2,
          const at::Tensor& factors, const at::Tensor& stats, const OptionalTensor& accumulator, const OptionalTensor& out,
          const OptionalTensor& ema, bool zero_gradient) {
  StepArguments{gradient, parameters, moment1, moment2, accumulator, out, ema}.check(factors, stats);
  const Table& table = best_table();
  float* p = parameters.data_ptr<float>();
  float* target = out.has_value() ? out->data_ptr<float>() : p;
  const StepState all{p, moment1.data_ptr<float>(), pointer(moment2), target, pointer(ema), pointer(accumulator),
                      parameters.numel() >= STREAM_FROM};
  const float* constants = factors.data_ptr<float>();
  const auto at_offset = [](float* pointer, int64_t begin) { return pointer == nullptr ? nullptr : pointer + begin; };
  with_type(gradient, [&](auto* grad) {
    sum_blocks(parameters.numel(), stats, [&](int64_t begin, int64_t length) {
      const StepState block{all.parameters + begin,       all.moment1 + begin,               at_offset(all.moment2, begin), all.out + begin,
                            at_offset(all.ema, begin), at_offset(all.accumulator, begin), all.stream};
      if constexpr (wide<std::remove_pointer_t<decltype(grad)>>)
        return table.step_f(block, grad + begin, zero_gradient, constants, length);
      else
        return table.step_b(block, grad + begin, zero_gradient, constants, length);
    });
  });
}

void pack(const at::Tensor& accumulator, const at::Tensor& wire, const OptionalTensor& residual, const at::Tensor& stats, double words,
          double clip_norm) {
  check_vector(accumulator, "accumulator", accumulator);
  check_vector(wire, "wire", accumulator, true);
  check_vector(residual, "residual", accumulator);
  check_stats(stats, accumulator);
  TORCH_CHECK_VALUE(words > 0, "words is ", words, ", expected a positive number");
  double* result = stats.data_ptr<double>();
  const double norm = std::sqrt(result[0]) / words;
  const float scale = clip_norm > 0 && norm > clip_norm ? static_cast<float>(clip_norm / norm) : 1.0f;
  const Table& table = best_table();
  const int64_t size = accumulator.numel();
  float *acc = accumulator.data_ptr<float>(), *rest = pointer(residual);
  std::vector<int64_t> bad((size + BLOCK - 1) / BLOCK);
  with_type(wire, [&](auto* out) {
    for_blocks(size, [&](int64_t block, int64_t begin, int64_t length) {
      float* rest_here = rest == nullptr ? nullptr : rest + begin;
      const bool stream = size >= STREAM_FROM;
      if constexpr (wide<std::remove_pointer_t<decltype(out)>>)
        bad[block] = table.pack_f(acc + begin, out + begin, rest_here, scale, stream, length);
      else
        bad[block] = table.pack_b(acc + begin, out + begin, rest_here, scale, stream, length);
    });
  });
  for (const int64_t count : bad) result[1] += static_cast<double>(count);
}

void select(const at::Tensor& gradient, const at::Tensor& residual, const at::Tensor& values, const at::Tensor& indices,
            const at::Tensor& stats, double threshold) {
  check_vector(residual, "residual", residual);
  check_vector(gradient, "gradient", residual, true);
  check_small(values, "values", residual, at::kFloat, values.numel());
  check_small(indices, "indices", residual, at::kLong, values.numel());
  check_stats(stats, residual);
  const int64_t size = residual.numel(), capacity = values.numel();
  const float limit = static_cast<float>(threshold);
  float* rest = residual.data_ptr<float>();
  std::vector<Selected> parts((size + BLOCK - 1) / BLOCK);
  std::vector<int64_t> offsets(parts.size());
  with_type(gradient, [&](auto* grad) {
    using G = std::remove_pointer_t<decltype(grad)>;
    for_blocks(size, [&](int64_t block, int64_t begin, int64_t length) {
      parts[block] = count_large<G>(grad + begin, rest + begin, limit, length);
    });
    int64_t kept = 0;
    double bad = 0;
    for (size_t block = 0; block < parts.size(); ++block) {
      offsets[block] = std::min(kept, capacity);
      kept += parts[block].kept;
      bad += static_cast<double>(parts[block].bad);
    }
    for_blocks(size, [&](int64_t block, int64_t begin, int64_t length) {
      const int64_t at = offsets[block];
      move_large<G>(grad + begin, rest + begin, limit, values.data_ptr<float>() + at, indices.data_ptr<int64_t>() + at, capacity - at, begin, length);
    });
    stats.data_ptr<double>()[0] = static_cast<double>(std::min(kept, capacity));
    stats.data_ptr<double>()[1] += bad;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(hpcnmt, CPU, m) {
  m.impl("accumulate", accumulate);
  m.impl("sum_squares", sum_squares);
  m.impl("step", step);
  m.impl("pack", pack);
  m.impl("select", select);
}

extern "C" __attribute__((visibility("default"))) const char* hpcnmt_cpu_kernels() { return best_table().name; }

}  // namespace hpcnmt::cpu
