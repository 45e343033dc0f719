// Accumulation, norm, optimizer step and packing on the GPU; see kernels.h.
#include "device.cuh"

namespace hpcnmt::cuda {
namespace {

template <class G, int N>
struct Accumulate {
  float* accumulator;
  G* gradient;
  float scale;
  bool zero;
  Partial sum{0, 0};
  Group<float, N> acc[IN_FLIGHT];
  Group<G, N> grad[IN_FLIGHT];

  __device__ __forceinline__ void load(int slot, Index group) {
    acc[slot].load(accumulator, group);
    grad[slot].load(gradient, group);
  }
  __device__ __forceinline__ void use(int slot, Index group) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      sum.bad += !add_scaled(scale, to_float(grad[slot].at[k]), acc[slot].at[k]);
      const double value = acc[slot].at[k];
      sum.sum_squares += value * value;
      grad[slot].at[k] = G(0);
    }
    acc[slot].store(accumulator, group);
    if (zero) grad[slot].store(gradient, group);
  }
};

template <int N>
struct SumSquares {
  const float* values;
  Partial sum{0, 0};
  Group<float, N> value[IN_FLIGHT];

  __device__ __forceinline__ void load(int slot, Index group) { value[slot].load(values, group); }
  __device__ __forceinline__ void use(int slot, Index) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const bool fine = finite(value[slot].at[k]);
      const double x = fine ? value[slot].at[k] : 0.0f;
      sum.sum_squares += x * x;
      sum.bad += !fine;
    }
  }
};

template <class G, int N>
struct Step {
  StepState state;
  G* gradient;
  bool zero;
  const float* factors;
  Rule<float> rule;
  Partial sum{0, 0};
  Group<G, N> grad[IN_FLIGHT];
  Group<float, N> p[IN_FLIGHT], m[IN_FLIGHT], v[IN_FLIGHT], a[IN_FLIGHT], e[IN_FLIGHT];

  __device__ __forceinline__ void load(int slot, Index group) {
    grad[slot].load(gradient, group);
    p[slot].load(state.parameters, group);
    m[slot].load(state.moment1, group);
    v[slot].load(state.moment2, group);
    a[slot].load(state.accumulator, group);
    e[slot].load(state.ema, group);
  }
  __device__ __forceinline__ void use(int slot, Index group) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float raw = to_float(grad[slot].at[k]), before = a[slot].at[k];
      float total = before;
      bool fine = add_scaled(1.0f, raw, total);  // a gradient that the accumulator cannot take is not stepped on either
      const float mean = fine ? raw * rule.scale : __int_as_float(0x7f800000);
      fine = state.moment2 != nullptr ? adam(rule, mean, p[slot].at[k], m[slot].at[k], v[slot].at[k])
                                      : momentum(rule, mean, p[slot].at[k], m[slot].at[k]);
      total = fine ? total : before;
      a[slot].at[k] = total;
      if (state.accumulator != nullptr) sum.sum_squares += static_cast<double>(total) * total;
      sum.bad += !fine;
      e[slot].at[k] = fused(rule.ema_share, p[slot].at[k] - e[slot].at[k], e[slot].at[k]);
      grad[slot].at[k] = G(0);
    }
    p[slot].store(state.out, group);
    m[slot].store(state.moment1, group);
    v[slot].store(state.moment2, group);
    a[slot].store(state.accumulator, group);
    e[slot].store(state.ema, group);
    if (zero) grad[slot].store(gradient, group);
  }
};

template <class W, int N>
struct Pack {
  float* accumulator;
  W* wire;
  float* residual;
  float scale;
  Partial sum{0, 0};
  Group<float, N> acc[IN_FLIGHT], rest[IN_FLIGHT];

  __device__ __forceinline__ void load(int slot, Index group) {
    acc[slot].load(accumulator, group);
    rest[slot].load(residual, group);
  }
  __device__ __forceinline__ void use(int slot, Index group) {
    Group<W, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float value = fused(scale, acc[slot].at[k], rest[slot].at[k]);
      // what rounds to infinity in bfloat16 may not be sent either
      const bool fine = finite(sizeof(W) == sizeof(float) ? value : value * 1.003f);
      const float send = fine ? value : 0.0f;
      from_float(send, out.at[k]);
      rest[slot].at[k] = fine ? send - to_float(out.at[k]) : rest[slot].at[k];
      acc[slot].at[k] = 0.0f;
      sum.bad += !fine;
    }
    out.store(wire, group);
    rest[slot].store(residual, group);
    acc[slot].store(accumulator, group);
  }
};

// The whole groups by groups of N, the rest (fewer than N) one by one through the same body with N = 1.
template <int N, class Whole, class Rest>
__device__ __forceinline__ Partial both(Index size, Whole& whole, Rest& rest) {
  walk(size / N, whole);
  const Index done = size / N * N;
  if (N > 1 && blockIdx.x == 0 && threadIdx.x < size - done) {
    rest.load(0, done + threadIdx.x);
    rest.use(0, done + threadIdx.x);
    whole.sum.sum_squares += rest.sum.sum_squares;
    whole.sum.bad += rest.sum.bad;
  }
  return whole.sum;
}

template <class G, int N>
__global__ void __launch_bounds__(THREADS)
accumulate_kernel(float* accumulator, G* gradient, float scale, bool zero, Partial* partials, double* stats, Index size) {
  Accumulate<G, N> whole{accumulator, gradient, scale, zero};
  Accumulate<G, 1> rest{accumulator, gradient, scale, zero};
  finish(both<N>(size, whole, rest), partials, stats);
}

template <int N>
__global__ void __launch_bounds__(THREADS) sum_squares_kernel(const float* values, Partial* partials, double* stats, Index size) {
  SumSquares<N> whole{values};
  SumSquares<1> rest{values};
  finish(both<N>(size, whole, rest), partials, stats);
}

template <class G, int N>
__global__ void __launch_bounds__(THREADS)
step_kernel(StepState state, G* gradient, bool zero, const float* factors, Partial* partials, double* stats, Index size) {
  Step<G, N> whole{state, gradient, zero, factors, Rule<float>(factors)};
  Step<G, 1> rest{state, gradient, zero, factors, Rule<float>(factors)};
  finish(both<N>(size, whole, rest), partials, stats);
}

template <class W, int N>
__global__ void __launch_bounds__(THREADS)
pack_kernel(float* accumulator, W* wire, float* residual, double words, double clip_norm, double* stats, Index size) {
  const double norm = sqrt(stats[0]) / words;  // read only: the kernel changes stats[1] alone
  const float scale = clip_norm > 0 && norm > clip_norm ? static_cast<float>(clip_norm / norm) : 1.0f;
  Pack<W, N> whole{accumulator, wire, residual, scale};
  Pack<W, 1> rest{accumulator, wire, residual, scale};
  const Partial block = block_sum(both<N>(size, whole, rest));
  if (threadIdx.x == 0 && block.bad > 0) atomicAdd(stats + 1, static_cast<double>(block.bad));  // whole numbers: exact in any order
}

}  // namespace

cudaError_t workspace_blocks(int* blocks) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  *blocks = processors * (2048 / THREADS);
  return error;
}

template <class G>
cudaError_t accumulate(const Launch& launch, float* accumulator, G* gradient, float scale, bool zero, std::int64_t size) {
  const bool wide = aligned(accumulator, 16) && aligned(gradient, GROUP * sizeof(G));
  const auto kernel = wide ? accumulate_kernel<G, GROUP> : accumulate_kernel<G, 1>;
  return launch_grid(launch, wide ? size / GROUP : size, kernel, accumulator, gradient, scale, zero, launch.partials, launch.stats, Index(size));
}

cudaError_t sum_squares(const Launch& launch, const float* values, std::int64_t size) {
  const bool wide = aligned(values, 16);
  const auto kernel = wide ? sum_squares_kernel<GROUP> : sum_squares_kernel<1>;
  return launch_grid(launch, wide ? size / GROUP : size, kernel, values, launch.partials, launch.stats, Index(size));
}

template <class G>
cudaError_t step(const Launch& launch, const StepState& s, G* gradient, bool zero, const float* factors, std::int64_t size) {
  bool wide = aligned(gradient, GROUP * sizeof(G));
  for (const float* pointer : {s.parameters, s.moment1, s.moment2, s.out, s.ema, s.accumulator}) wide = wide && aligned(pointer, 16);
  const auto kernel = wide ? step_kernel<G, GROUP> : step_kernel<G, 1>;
  return launch_grid(launch, wide ? size / GROUP : size, kernel, s, gradient, zero, factors, launch.partials, launch.stats, Index(size));
}

template <class W>
cudaError_t pack(const Launch& launch, float* accumulator, W* wire, float* residual, double words, double clip_norm, std::int64_t size) {
  const bool wide = aligned(accumulator, 16) && aligned(residual, 16) && aligned(wire, GROUP * sizeof(W));
  const auto kernel = wide ? pack_kernel<W, GROUP> : pack_kernel<W, 1>;
  return launch_grid(launch, wide ? size / GROUP : size, kernel, accumulator, wire, residual, words, clip_norm, launch.stats, Index(size));
}

template cudaError_t accumulate<float>(const Launch&, float*, float*, float, bool, std::int64_t);
template cudaError_t accumulate<bfloat>(const Launch&, float*, bfloat*, float, bool, std::int64_t);
template cudaError_t step<float>(const Launch&, const StepState&, float*, bool, const float*, std::int64_t);
template cudaError_t step<bfloat>(const Launch&, const StepState&, bfloat*, bool, const float*, std::int64_t);
template cudaError_t pack<float>(const Launch&, float*, float*, float*, double, double, std::int64_t);
template cudaError_t pack<bfloat>(const Launch&, float*, bfloat*, float*, double, double, std::int64_t);

}  // namespace hpcnmt::cuda
