// The arithmetic of every kernel, written once over a register type R: CPU vectors (cpu/vector.h) and CUDA floats (cuda/kernels.cu).
//
// R needs + - * /, fused(a, b, c) = a * b + c, root(a), finite(a) -> mask, select(mask, a, b), broadcast(R*, float); masks need &.
// An element whose result would not be finite keeps its state: every formula returns the mask of the elements it has changed.
// Sources: Adam, Kingma & Ba 2015 (recursive denominators, folded into root_scale and step); AdamW, Loshchilov & Hutter 2019.
#pragma once

#ifdef __CUDACC__
#define HPCNMT_INLINE __device__ __forceinline__
#else
#define HPCNMT_INLINE inline __attribute__((always_inline))
#endif

namespace hpcnmt {

// The order of the `factors` vector; hpcnmt/ops/factors.py fills it.
enum Factor { SCALE, BETA1, REST1, BETA2, REST2, ROOT_SCALE, EPSILON, STEP, DECAY, EMA_SHARE, FACTORS };

template <class R>
struct Rule {
  R scale, beta1, rest1, beta2, rest2, root_scale, epsilon, minus_step, decay, ema_share;

  HPCNMT_INLINE explicit Rule(const float* f)
      : scale(f[SCALE]), beta1(f[BETA1]), rest1(f[REST1]), beta2(f[BETA2]), rest2(f[REST2]), root_scale(f[ROOT_SCALE]),
        epsilon(f[EPSILON]), minus_step(-f[STEP]), decay(f[DECAY]), ema_share(f[EMA_SHARE]) {}
};

// Adam and AdamW: m += (1-b1)(g-m); v = b2 v + (1-b2) g^2; p = decay p - step m / (root_scale sqrt(v) + eps).
template <class R>
HPCNMT_INLINE auto adam(const Rule<R>& rule, R gradient, R& parameter, R& moment1, R& moment2) {
  const R m = fused(rule.rest1, gradient - moment1, moment1);
  const R v = fused(rule.rest2 * gradient, gradient, rule.beta2 * moment2);
  const R p = fused(rule.minus_step, m / fused(root(v), rule.root_scale, rule.epsilon), rule.decay * parameter);
  const auto good = finite(gradient) & finite(v) & finite(p);
  parameter = select(good, p, parameter);
  moment1 = select(good, m, moment1);
  moment2 = select(good, v, moment2);
  return good;
}

// SGD with momentum: m = b1 m + g; p = decay p - step m.
template <class R>
HPCNMT_INLINE auto momentum(const Rule<R>& rule, R gradient, R& parameter, R& moment1) {
  const R m = fused(rule.beta1, moment1, gradient);
  const R p = fused(rule.minus_step, m, rule.decay * parameter);
  const auto good = finite(gradient) & finite(p);
  parameter = select(good, p, parameter);
  moment1 = select(good, m, moment1);
  return good;
}

// acc += scale * gradient.
template <class R>
HPCNMT_INLINE auto add_scaled(R scale, R gradient, R& accumulator) {
  const R sum = fused(scale, gradient, accumulator);
  const auto good = finite(sum);
  accumulator = select(good, sum, accumulator);
  return good;
}

}  // namespace hpcnmt
