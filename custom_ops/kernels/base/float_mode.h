// The mode in which all arithmetic is done.
#ifndef REUSE_TF_KERNELS_BASE_FLOAT_MODE_H_
#define REUSE_TF_KERNELS_BASE_FLOAT_MODE_H_

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace reuse_tf {

// While it lives, floats too small to be normal are zero on this thread, as
// operands and as results. TensorFlow sets this mode on the threads of its
// pools, and a process begins without it: the same bits come out on every
// thread only if it is set wherever a kernel runs.
class FlushDenormals {
 public:
  FlushDenormals() : before_(Read()) { Write(before_ | kFlush); }
  ~FlushDenormals() { Write(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__SSE2__)
  using Register = uint32_t;
  static constexpr Register kFlush = 0x8040;  // FTZ and DAZ of MXCSR
  static Register Read() { return _mm_getcsr(); }
  static void Write(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  static constexpr Register kFlush = uint64_t{1} << 24;  // FZ of FPCR
  static Register Read() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void Write(Register value) {
    asm volatile("msr fpcr, %0" : : "r"(value));
  }
#else
  using Register = uint32_t;
  static constexpr Register kFlush = 0;
  static Register Read() { return 0; }
  static void Write(Register) {}
#endif

  const Register before_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_BASE_FLOAT_MODE_H_
