// Binds the CUDA kernels to the operators hpcnmt::* on the current stream of the tensors' device. Allocates nothing but a workspace of
// partial sums from torch's caching allocator, and never waits for the device: safe in a captured graph.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../checks.h"
#include "kernels.h"

namespace hpcnmt::cuda {
namespace {

static_assert(sizeof(Partial) == 2 * sizeof(double));

class Context {  // device guard, stream and workspace of one call
 public:
  Context(const at::Tensor& like, const at::Tensor& stats) : guard_(like.device()) {
    int blocks = 0;
    C10_CUDA_CHECK(workspace_blocks(&blocks));
    workspace_ = at::empty({2 * static_cast<int64_t>(blocks)}, stats.options());
    launch = {c10::cuda::getCurrentCUDAStream().stream(), static_cast<Partial*>(workspace_.data_ptr()), stats.data_ptr<double>()};
  }
  Launch launch{};

 private:
  c10::cuda::CUDAGuard guard_;
  at::Tensor workspace_;
};

template <class F>
void with_type(const at::Tensor& t, F&& function) {
  if (t.scalar_type() == at::kFloat) {
    C10_CUDA_CHECK(function(t.data_ptr<float>()));
  } else {
    C10_CUDA_CHECK(function(reinterpret_cast<bfloat*>(t.data_ptr<at::BFloat16>())));
  }
}

namespace operators {  // apart from the launchers of the same names

void accumulate(const at::Tensor& accumulator, const at::Tensor& gradient, const at::Tensor& stats, double scale, bool zero_gradient) {
  check_vector(accumulator, "accumulator", accumulator);
  check_vector(gradient, "gradient", accumulator, true);
  check_stats(stats, accumulator);
  const Context context(accumulator, stats);
  with_type(gradient, [&](auto* grad) {
    const float factor = static_cast<float>(scale);
    return cuda::accumulate(context.launch, accumulator.data_ptr<float>(), grad, factor, zero_gradient, accumulator.numel());
  });
}

void sum_squares(const at::Tensor& values, const at::Tensor& stats) {
  check_vector(values, "values", values);
  check_stats(stats, values);
  const Context context(values, stats);
  C10_CUDA_CHECK(cuda::sum_squares(context.launch, values.data_ptr<float>(), values.numel()));
}

void step(const at::Tensor& gradient, const at::Tensor& parameters, const at::Tensor& moment1, const OptionalTensor& moment2,
          const at::Tensor& factors, const at::Tensor& stats, const OptionalTensor& accumulator, const OptionalTensor& out,
          const OptionalTensor& ema, bool zero_gradient) {
  StepArguments{gradient, parameters, moment1, moment2, accumulator, out, ema}.check(factors, stats);
  const Context context(parameters, stats);
  float* p = parameters.data_ptr<float>();
  const StepState state{p, moment1.data_ptr<float>(), pointer(moment2), out.has_value() ? out->data_ptr<float>() : p, pointer(ema),
                        pointer(accumulator)};
  with_type(gradient, [&](auto* grad) {
    return cuda::step(context.launch, state, grad, zero_gradient, factors.data_ptr<float>(), parameters.numel());
  });
}

void pack(const at::Tensor& accumulator, const at::Tensor& wire, const OptionalTensor& residual, const at::Tensor& stats, double words,
          double clip_norm) {
  check_vector(accumulator, "accumulator", accumulator);
  check_vector(wire, "wire", accumulator, true);
  check_vector(residual, "residual", accumulator);
  check_stats(stats, accumulator);
  TORCH_CHECK_VALUE(words > 0, "words is ", words, ", expected a positive number");
  const Context context(accumulator, stats);
  with_type(wire, [&](auto* out) {
    return cuda::pack(context.launch, accumulator.data_ptr<float>(), out, pointer(residual), words, clip_norm, accumulator.numel());
  });
}

void select(const at::Tensor& gradient, const at::Tensor& residual, const at::Tensor& values, const at::Tensor& indices,
            const at::Tensor& stats, double threshold) {
  check_vector(residual, "residual", residual);
  check_vector(gradient, "gradient", residual, true);
  check_small(values, "values", residual, at::kFloat, values.numel());
  check_small(indices, "indices", residual, at::kLong, values.numel());
  check_stats(stats, residual);
  const Context context(residual, stats);
  with_type(gradient, [&](auto* grad) {
    return cuda::select(context.launch, grad, residual.data_ptr<float>(), static_cast<float>(threshold), values.data_ptr<float>(),
                        indices.data_ptr<int64_t>(), values.numel(), residual.numel());
  });
}

}  // namespace operators
}  // namespace

TORCH_LIBRARY_IMPL(hpcnmt, CUDA, m) {
  m.impl("accumulate", operators::accumulate);
  m.impl("sum_squares", operators::sum_squares);
  m.impl("step", operators::step);
  m.impl("pack", operators::pack);
  m.impl("select", operators::select);
}

}  // namespace hpcnmt::cuda
