// The CUDA kernels: raw pointers, sizes and a stream, so that `nvcc -c kernels.cu` checks them on any machine with nvcc and no GPU.
//
// A persistent grid walks over the vector; each thread holds two groups of four elements of every stream in flight, with 16-byte accesses
// where all pointers allow them. Sums: one partial a block, added in order by the first block after a grid-wide barrier (cooperative launch),
// so that one launch does all and results do not depend on the order of the blocks. `bfloat` = bit pattern of a bfloat16. A null
// pointer = the optional vector is absent. All functions return the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hpcnmt::cuda {

using bfloat = std::uint16_t;

struct Partial {
  double sum_squares;
  unsigned long long bad;
};

struct Launch {
  cudaStream_t stream;
  Partial* partials;  // [workspace_blocks()] on the device
  double* stats;      // [2] on the device
};

struct StepState {
  float *parameters, *moment1, *moment2, *out, *ema, *accumulator;
};

// Partials that a launch on the current device may need.
cudaError_t workspace_blocks(int* blocks);

template <class G>
cudaError_t accumulate(const Launch& launch, float* accumulator, G* gradient, float scale, bool zero, std::int64_t size);
cudaError_t sum_squares(const Launch& launch, const float* values, std::int64_t size);
template <class G>
cudaError_t step(const Launch& launch, const StepState& state, G* gradient, bool zero, const float* factors, std::int64_t size);
template <class W>
cudaError_t pack(const Launch& launch, float* accumulator, W* wire, float* residual, double words, double clip_norm, std::int64_t size);
template <class G>
cudaError_t select(
    const Launch& launch, G* gradient, float* residual, float threshold, float* values, std::int64_t* indices, std::int64_t room, std::int64_t size);

}  // namespace hpcnmt::cuda
