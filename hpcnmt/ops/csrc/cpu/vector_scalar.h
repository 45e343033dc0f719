// One float as a vector of one lane: any processor; compilers widen the loops themselves where the target has fused multiply-add.
#pragma once

struct Mask {
  bool on;
  friend HPCNMT_INLINE Mask operator&(Mask a, Mask b) { return {a.on && b.on}; }
};

struct Reg {
  static constexpr int LANES = 1;
  float x;
  HPCNMT_INLINE Reg() = default;
  HPCNMT_INLINE explicit Reg(float value) : x(value) {}
  friend HPCNMT_INLINE Reg operator+(Reg a, Reg b) { return Reg(a.x + b.x); }
  friend HPCNMT_INLINE Reg operator-(Reg a, Reg b) { return Reg(a.x - b.x); }
  friend HPCNMT_INLINE Reg operator*(Reg a, Reg b) { return Reg(a.x * b.x); }
  friend HPCNMT_INLINE Reg operator/(Reg a, Reg b) { return Reg(a.x / b.x); }
};

HPCNMT_INLINE Reg fused(Reg a, Reg b, Reg c) { return Reg(__builtin_fmaf(a.x, b.x, c.x)); }
HPCNMT_INLINE Reg root(Reg a) { return Reg(__builtin_sqrtf(a.x)); }
HPCNMT_INLINE Mask finite(Reg a) { return {__builtin_fabsf(a.x) < __builtin_inff()}; }
HPCNMT_INLINE Reg select(Mask mask, Reg a, Reg b) { return mask.on ? a : b; }
HPCNMT_INLINE int count(Mask mask) { return mask.on; }
HPCNMT_INLINE Reg load(const float* p) { return Reg(*p); }
HPCNMT_INLINE void store(float* p, Reg a) { *p = a.x; }
HPCNMT_INLINE void stream(float* p, Reg a) { *p = a.x; }
HPCNMT_INLINE void fence() {}
HPCNMT_INLINE Reg load(const bfloat* p) {
  const std::uint32_t bits = static_cast<std::uint32_t>(*p) << 16;
  Reg result;
  __builtin_memcpy(&result.x, &bits, 4);
  return result;
}
HPCNMT_INLINE Reg store(bfloat* p, Reg a) {  // to the nearest, ties to even; returns what was stored (a is finite)
  std::uint32_t bits;
  __builtin_memcpy(&bits, &a.x, 4);
  *p = static_cast<bfloat>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  return load(p);
}
HPCNMT_INLINE Reg stream(bfloat* p, Reg a) { return store(p, a); }

struct Squares {  // sum of squares in double precision
  double sum = 0;
  HPCNMT_INLINE void add(Reg a) { sum += static_cast<double>(a.x) * a.x; }
  HPCNMT_INLINE double total() const { return sum; }
};
