// Eight floats in an AVX2 register.
#pragma once

struct Mask {
  __m256 on;
  friend HPCNMT_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.on, b.on)}; }
};

struct Reg {
  static constexpr int LANES = 8;
  __m256 x;
  HPCNMT_INLINE Reg() = default;
  HPCNMT_INLINE explicit Reg(float value) : x(_mm256_set1_ps(value)) {}
  HPCNMT_INLINE explicit Reg(__m256 value) : x(value) {}
  friend HPCNMT_INLINE Reg operator+(Reg a, Reg b) { return Reg(_mm256_add_ps(a.x, b.x)); }
  friend HPCNMT_INLINE Reg operator-(Reg a, Reg b) { return Reg(_mm256_sub_ps(a.x, b.x)); }
  friend HPCNMT_INLINE Reg operator*(Reg a, Reg b) { return Reg(_mm256_mul_ps(a.x, b.x)); }
  friend HPCNMT_INLINE Reg operator/(Reg a, Reg b) { return Reg(_mm256_div_ps(a.x, b.x)); }
};

HPCNMT_INLINE Reg fused(Reg a, Reg b, Reg c) { return Reg(_mm256_fmadd_ps(a.x, b.x, c.x)); }
HPCNMT_INLINE Reg root(Reg a) { return Reg(_mm256_sqrt_ps(a.x)); }
HPCNMT_INLINE Mask finite(Reg a) {
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.x);
  return {_mm256_cmp_ps(size, _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ)};
}
HPCNMT_INLINE Reg select(Mask mask, Reg a, Reg b) { return Reg(_mm256_blendv_ps(b.x, a.x, mask.on)); }
HPCNMT_INLINE int count(Mask mask) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(mask.on))); }
HPCNMT_INLINE Reg load(const float* p) { return Reg(_mm256_loadu_ps(p)); }
HPCNMT_INLINE void store(float* p, Reg a) { _mm256_storeu_ps(p, a.x); }
HPCNMT_INLINE void stream(float* p, Reg a) { _mm256_stream_ps(p, a.x); }
HPCNMT_INLINE void fence() { _mm_sfence(); }
HPCNMT_INLINE __m256i widen(__m128i halves) { return _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16); }
HPCNMT_INLINE Reg load(const bfloat* p) {
  return Reg(_mm256_castsi256_ps(widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
}
HPCNMT_INLINE __m128i rounded(Reg a) {  // to the nearest, ties to even (a is finite)
  const __m256i bits = _mm256_castps_si256(a.x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i high = _mm256_srli_epi32(sum, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
HPCNMT_INLINE Reg store(bfloat* p, Reg a) {
  const __m128i halves = rounded(a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
  return Reg(_mm256_castsi256_ps(widen(halves)));
}
HPCNMT_INLINE Reg stream(bfloat* p, Reg a) {
  const __m128i halves = rounded(a);
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), halves);
  return Reg(_mm256_castsi256_ps(widen(halves)));
}

struct Squares {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  HPCNMT_INLINE void add(Reg a) {
    const __m256d first = _mm256_cvtps_pd(_mm256_castps256_ps128(a.x)), second = _mm256_cvtps_pd(_mm256_extractf128_ps(a.x, 1));
    low = _mm256_fmadd_pd(first, first, low);
    high = _mm256_fmadd_pd(second, second, high);
  }
  HPCNMT_INLINE double total() const {
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, _mm256_add_pd(low, high));
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
};
