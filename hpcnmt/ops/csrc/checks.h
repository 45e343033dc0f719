// Checks of the operators' arguments that CPU and CUDA share: what was found, what was expected.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "formulas.h"

namespace hpcnmt {

using OptionalTensor = std::optional<at::Tensor>;

inline void check_vector(const at::Tensor& t, const char* name, const at::Tensor& like, bool gradient = false) {
  TORCH_CHECK_VALUE(t.device() == like.device(), name, " is on ", t.device(), ", expected ", like.device());
  TORCH_CHECK_VALUE(t.is_contiguous(), name, " is not contiguous, expected one block of memory: call .contiguous()");
  TORCH_CHECK_VALUE(t.numel() == like.numel(), name, " has ", t.numel(), " elements, expected ", like.numel());
  const bool fits = t.scalar_type() == at::kFloat || (gradient && t.scalar_type() == at::kBFloat16);
  TORCH_CHECK_VALUE(fits, name, " is ", t.scalar_type(), ", expected ", gradient ? "float32 or bfloat16" : "float32");
}

inline void check_vector(const OptionalTensor& t, const char* name, const at::Tensor& like) {
  if (t.has_value()) check_vector(*t, name, like);
}

inline void check_small(const at::Tensor& t, const char* name, const at::Tensor& like, at::ScalarType type, int64_t size) {
  const bool fits = t.device() == like.device() && t.is_contiguous() && t.scalar_type() == type && t.numel() == size;
  TORCH_CHECK_VALUE(fits, name, " is ", t.scalar_type(), " of ", t.numel(), " elements on ", t.device(), ", expected ", type, " of ", size,
                    " on ", like.device());
}

inline void check_stats(const at::Tensor& stats, const at::Tensor& like) { check_small(stats, "stats", like, at::kDouble, 2); }

inline float* pointer(const OptionalTensor& t) { return t.has_value() ? t->data_ptr<float>() : nullptr; }

struct StepArguments {  // checked arguments of the operator `step`
  const at::Tensor &gradient, &parameters, &moment1;
  const OptionalTensor &moment2, &accumulator, &out, &ema;

  void check(const at::Tensor& factors, const at::Tensor& stats) const {
    check_vector(parameters, "parameters", parameters);
    check_vector(gradient, "gradient", parameters, true);
    check_vector(moment1, "moment1", parameters);
    check_vector(moment2, "moment2", parameters);
    check_vector(accumulator, "accumulator", parameters);
    check_vector(out, "out", parameters);
    check_vector(ema, "ema", parameters);
    check_small(factors, "factors", parameters, at::kFloat, FACTORS);
    check_stats(stats, parameters);
  }
};

}  // namespace hpcnmt
