// What the kernels share: float as the register type of formulas.h, groups of four elements, sums over the grid.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "kernels.h"

namespace hpcnmt {

// Found by the templates of formulas.h: to be declared before it.
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float root(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ bool finite(float a) { return fabsf(a) < __int_as_float(0x7f800000); }
__device__ __forceinline__ float select(bool mask, float a, float b) { return mask ? a : b; }

}  // namespace hpcnmt

#include "../formulas.h"

namespace hpcnmt::cuda {

constexpr int THREADS = 256, GROUP = 4, IN_FLIGHT = 2;
using Index = long long;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat x) { return __uint_as_float(static_cast<unsigned>(x) << 16); }
__device__ __forceinline__ void from_float(float x, float& to) { to = x; }
__device__ __forceinline__ void from_float(float x, bfloat& to) {  // to the nearest, ties to even (x is finite)
  const unsigned bits = __float_as_uint(x);
  to = static_cast<bfloat>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// N consecutive elements of one vector; N = 4: one access of 16 bytes (8 of bfloat). A null pointer reads zeros and writes nothing.
template <class T, int N>
struct alignas(N * sizeof(T)) Group {
  T at[N];
  __device__ __forceinline__ void load(const T* from, Index index) {
    if (from != nullptr) {
      *this = *reinterpret_cast<const Group*>(from + index * N);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) at[k] = T(0);
    }
  }
  __device__ __forceinline__ void store(T* to, Index index) const {
    if (to != nullptr) *reinterpret_cast<Group*>(to + index * N) = *this;
  }
};

// Runs body.load(slot, group) for IN_FLIGHT groups, then body.use(slot, group) for them, over all whole groups of the vector.
template <class Body>
__device__ __forceinline__ void walk(Index groups, Body& body) {
  const Index stride = static_cast<Index>(gridDim.x) * THREADS;
  for (Index first = static_cast<Index>(blockIdx.x) * THREADS + threadIdx.x; first < groups; first += IN_FLIGHT * stride) {
#pragma unroll
    for (int slot = 0; slot < IN_FLIGHT; ++slot)
      if (first + slot * stride < groups) body.load(slot, first + slot * stride);
#pragma unroll
    for (int slot = 0; slot < IN_FLIGHT; ++slot)
      if (first + slot * stride < groups) body.use(slot, first + slot * stride);
  }
}

// Sum over the block, the same for the same values whatever the timing; valid in thread 0.
__device__ __forceinline__ Partial block_sum(Partial mine) {
  __shared__ Partial warps[THREADS / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    mine.sum_squares += __shfl_down_sync(0xffffffffu, mine.sum_squares, offset);
    mine.bad += __shfl_down_sync(0xffffffffu, mine.bad, offset);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < THREADS / 32; ++warp) {
      mine.sum_squares += warps[warp].sum_squares;
      mine.bad += warps[warp].bad;
    }
  __syncthreads();
  return mine;
}

// stats[0] = sum over the grid, stats[1] += bad elements. Every thread of the grid calls it.
__device__ __forceinline__ void finish(Partial mine, Partial* partials, double* stats) {
  const Partial block = block_sum(mine);
  if (threadIdx.x == 0) partials[blockIdx.x] = block;
  cooperative_groups::this_grid().sync();
  if (blockIdx.x != 0) return;
  Partial part{0, 0};
  for (int index = threadIdx.x; index < static_cast<int>(gridDim.x); index += THREADS) {
    part.sum_squares += partials[index].sum_squares;
    part.bad += partials[index].bad;
  }
  const Partial total = block_sum(part);
  if (threadIdx.x == 0) {
    stats[0] = total.sum_squares;
    stats[1] += static_cast<double>(total.bad);
  }
}

// A cooperative launch of as many blocks as are of use and fit on the device at once.
template <class... P, class... A>
cudaError_t launch_grid(const Launch& launch, std::int64_t groups, void (*kernel)(P...), A... arguments) {
  static_assert((std::is_same_v<P, A> && ...), "the launch hands over addresses: types must be those of the kernel");
  int device = 0, processors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, THREADS, 0);
  if (error != cudaSuccess) return error;
  const std::int64_t useful = (groups + THREADS * IN_FLIGHT - 1) / (THREADS * IN_FLIGHT);
  const std::int64_t most = static_cast<std::int64_t>(processors) * resident;
  const unsigned blocks = static_cast<unsigned>(useful < 1 ? 1 : useful < most ? useful : most);
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(THREADS), pointers, 0, launch.stream);
}

inline bool aligned(const void* pointer, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0; }

}  // namespace hpcnmt::cuda
