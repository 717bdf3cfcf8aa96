// A large array whose memory is only taken as it is used.
#ifndef REUSE_TF_KERNELS_BASE_LAZY_BUFFER_H_
#define REUSE_TF_KERNELS_BASE_LAZY_BUFFER_H_

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <new>

#include "custom_ops/kernels/base/sizes.h"

namespace reuse_tf {

// Asks for huge pages for memory that was not touched yet. They take less time
// to get, and, where rows are read at random, to find.
inline void UseHugePages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (begin + bytes) / kHuge * kHuge;
  // Where there are none, it makes no difference.
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)data, (void)bytes;
#endif
}

// `size` zeros of a trivial type. The system hands out zeroed pages when they
// are first touched, so a table can have its final size from the start, never
// moves, and costs what its rows in use cost. Not from the heap, which may hand
// out memory that was used before, and would have to clear all of it.
template <typename T>
class LazyBuffer {
 public:
  LazyBuffer() = default;
  explicit LazyBuffer(int64_t size) {
    const size_t bytes = Product({size, sizeof(T)});
    if (bytes == 0) return;
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    UseHugePages(data, bytes);
    data_ = std::unique_ptr<T[], Unmap>(static_cast<T*>(data), Unmap{bytes});
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  struct Unmap {
    size_t bytes = 0;
    void operator()(T* data) const { munmap(data, bytes); }
  };
  std::unique_ptr<T[], Unmap> data_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_BASE_LAZY_BUFFER_H_
