// Products of sizes that do not overflow unnoticed.
#ifndef REUSE_TF_KERNELS_BASE_SIZES_H_
#define REUSE_TF_KERNELS_BASE_SIZES_H_

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <new>

namespace reuse_tf {

// Sets *product to that of sizes that are not negative. False if it is beyond
// int64, whose largest value it is then.
inline bool Multiply(std::initializer_list<int64_t> sizes, int64_t* product) {
  int64_t result = 1;
  bool fits = true;
  for (const int64_t size : sizes) {
    if (size == 0) {
      *product = 0;
      return true;
    }
    fits = fits && !__builtin_mul_overflow(result, size, &result);
  }
  *product = fits ? result : std::numeric_limits<int64_t>::max();
  return fits;
}

// How many values to allocate: there is no memory for more than int64 counts.
inline int64_t Product(std::initializer_list<int64_t> sizes) {
  int64_t product = 0;
  if (!Multiply(sizes, &product)) throw std::bad_alloc();
  return product;
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_BASE_SIZES_H_
