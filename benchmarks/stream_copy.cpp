// Plain copy loops with the streams of the kernels: what memory gives on this machine. Compiled by benchmarks/ops.py with -O3 -march=native.
#include <cstdint>

extern "C" {

// Five vectors read and written in place, as a local step does (parameters, gradient, accumulator, two moments).
void local_streams(float* p, float* g, float* a, float* m, float* v, std::int64_t size) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < size; ++i) {
    p[i] += 1.0f;
    g[i] += 1.0f;
    a[i] += 1.0f;
    m[i] += 1.0f;
    v[i] += 1.0f;
  }
}

// Five read, four written, as a shard step does (three in place, one from `p` to `out`, the gradient only read).
void shard_streams(const float* g, const float* p, float* out, float* m, float* v, float* e, std::int64_t size) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = p[i] + g[i];
    m[i] += 1.0f;
    v[i] += 1.0f;
    e[i] += 1.0f;
  }
}

// The same with a bfloat16 gradient.
void shard_streams_bf16(const std::uint16_t* g, const float* p, float* out, float* m, float* v, float* e, std::int64_t size) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = p[i] + static_cast<float>(g[i]);
    m[i] += 1.0f;
    v[i] += 1.0f;
    e[i] += 1.0f;
  }
}
}
