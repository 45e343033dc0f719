// Sixteen floats in an AVX-512 register.
#pragma once

struct Mask {
  __mmask16 on;
  friend HPCNMT_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.on & b.on)}; }
};

struct Reg {
  static constexpr int LANES = 16;
  __m512 x;
  HPCNMT_INLINE Reg() = default;
  HPCNMT_INLINE explicit Reg(float value) : x(_mm512_set1_ps(value)) {}
  HPCNMT_INLINE explicit Reg(__m512 value) : x(value) {}
  friend HPCNMT_INLINE Reg operator+(Reg a, Reg b) { return Reg(_mm512_add_ps(a.x, b.x)); }
  friend HPCNMT_INLINE Reg operator-(Reg a, Reg b) { return Reg(_mm512_sub_ps(a.x, b.x)); }
  friend HPCNMT_INLINE Reg operator*(Reg a, Reg b) { return Reg(_mm512_mul_ps(a.x, b.x)); }
  friend HPCNMT_INLINE Reg operator/(Reg a, Reg b) { return Reg(_mm512_div_ps(a.x, b.x)); }
};

HPCNMT_INLINE Reg fused(Reg a, Reg b, Reg c) { return Reg(_mm512_fmadd_ps(a.x, b.x, c.x)); }
HPCNMT_INLINE Reg root(Reg a) { return Reg(_mm512_sqrt_ps(a.x)); }
HPCNMT_INLINE Mask finite(Reg a) {
  return {_mm512_cmp_ps_mask(_mm512_abs_ps(a.x), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ)};
}
HPCNMT_INLINE Reg select(Mask mask, Reg a, Reg b) { return Reg(_mm512_mask_blend_ps(mask.on, b.x, a.x)); }
HPCNMT_INLINE int count(Mask mask) { return __builtin_popcount(mask.on); }
HPCNMT_INLINE Reg load(const float* p) { return Reg(_mm512_loadu_ps(p)); }
HPCNMT_INLINE void store(float* p, Reg a) { _mm512_storeu_ps(p, a.x); }
HPCNMT_INLINE void stream(float* p, Reg a) { _mm512_stream_ps(p, a.x); }
HPCNMT_INLINE void fence() { _mm_sfence(); }
HPCNMT_INLINE __m512i widen(__m256i halves) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16); }
HPCNMT_INLINE Reg load(const bfloat* p) {
  return Reg(_mm512_castsi512_ps(widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))));
}
HPCNMT_INLINE __m256i rounded(Reg a) {  // to the nearest, ties to even (a is finite)
  const __m512i bits = _mm512_castps_si512(a.x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}
HPCNMT_INLINE Reg store(bfloat* p, Reg a) {
  const __m256i halves = rounded(a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
  return Reg(_mm512_castsi512_ps(widen(halves)));
}
HPCNMT_INLINE Reg stream(bfloat* p, Reg a) {
  const __m256i halves = rounded(a);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), halves);
  return Reg(_mm512_castsi512_ps(widen(halves)));
}

struct Squares {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  HPCNMT_INLINE void add(Reg a) {
    const __m512d both_low = _mm512_cvtps_pd(_mm512_castps512_ps256(a.x));
    const __m512d both_high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.x), 1)));
    low = _mm512_fmadd_pd(both_low, both_low, low);
    high = _mm512_fmadd_pd(both_high, both_high, high);
  }
  HPCNMT_INLINE double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};
