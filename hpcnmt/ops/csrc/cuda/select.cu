// Threshold selection for gradient dropping (Aji & Heafield 2017) on the GPU, in the order of the index.
//
// Each block owns a contiguous range. Pass 1 counts what it will keep; after a grid-wide barrier the first block turns the counts into
// offsets; after another, pass 2 writes. partials[block].bad holds the count, then the offset of the block.
#include "device.cuh"

namespace hpcnmt::cuda {
namespace {

// Number of threads before this one in the block with `on`, and their total; every thread calls it.
__device__ __forceinline__ int rank_in_block(bool on, int* total) {
  __shared__ int warps[THREADS / 32];
  const unsigned votes = __ballot_sync(0xffffffffu, on);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) warps[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1u));
  *total = 0;
  for (int other = 0; other < THREADS / 32; ++other) {
    before += other < warp ? warps[other] : 0;
    *total += warps[other];
  }
  __syncthreads();
  return before;
}

template <class G>
__global__ void __launch_bounds__(THREADS)
select_kernel(G* gradient, float* residual, float threshold, float* values, std::int64_t* indices, Index room, Partial* partials,
              double* stats, Index size) {
  const auto grid = cooperative_groups::this_grid();
  const Index width = (size + gridDim.x - 1) / gridDim.x, begin = width * blockIdx.x;
  const Index end = begin + width < size ? begin + width : size;
  Partial mine{0, 0};  // sum_squares: non-finite elements; bad: kept ones
  for (Index i = begin + threadIdx.x; i < end; i += THREADS) {
    const float size_of = fabsf(to_float(gradient[i]) + residual[i]);
    mine.sum_squares += !finite(size_of);
    mine.bad += finite(size_of) && size_of >= threshold;
  }
  const Partial block = block_sum(mine);
  if (threadIdx.x == 0) partials[blockIdx.x] = block;
  grid.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    Index kept = 0;
    double bad = 0;
    for (unsigned other = 0; other < gridDim.x; ++other) {
      const Index count = static_cast<Index>(partials[other].bad);
      bad += partials[other].sum_squares;
      partials[other].bad = static_cast<unsigned long long>(kept);
      kept += count;
    }
    stats[0] = static_cast<double>(kept < room ? kept : room);
    stats[1] += bad;
  }
  grid.sync();
  Index offset = static_cast<Index>(partials[blockIdx.x].bad);
  for (Index first = begin; first < end; first += THREADS) {  // the same number of turns in every thread of the block
    const Index i = first + threadIdx.x;
    const bool inside = i < end;
    const float sum = inside ? to_float(gradient[i]) + residual[i] : 0.0f;
    const bool fine = inside && finite(sum), large = fine && fabsf(sum) >= threshold;
    int total = 0;
    const Index place = offset + rank_in_block(large, &total);
    offset += total;
    if (large && place < room) {
      values[place] = sum;
      indices[place] = i;
    }
    if (fine) residual[i] = large && place < room ? 0.0f : sum;
    if (inside) gradient[i] = G(0);
  }
}

}  // namespace

template <class G>
cudaError_t select(
    const Launch& launch, G* gradient, float* residual, float threshold, float* values, std::int64_t* indices, std::int64_t room,
    std::int64_t size) {
  return launch_grid(launch, size, select_kernel<G>, gradient, residual, threshold, values, indices, Index(room), launch.partials,
                     launch.stats, Index(size));
}

template cudaError_t select<float>(const Launch&, float*, float*, float, float*, std::int64_t*, std::int64_t, std::int64_t);
template cudaError_t select<bfloat>(const Launch&, bfloat*, float*, float, float*, std::int64_t*, std::int64_t, std::int64_t);

}  // namespace hpcnmt::cuda
