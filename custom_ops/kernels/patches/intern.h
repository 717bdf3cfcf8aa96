// Interning: equal patches get the same id, at any position, in any frame, of
// any stream.
#ifndef REUSE_TF_KERNELS_PATCHES_INTERN_H_
#define REUSE_TF_KERNELS_PATCHES_INTERN_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "custom_ops/kernels/base/lazy_buffer.h"

namespace reuse_tf {

// A mix of `count` 32-bit words into 64 bits.
inline uint64_t HashWords(const int32_t* words, int64_t count) {
  const auto mix = [](uint64_t h, uint64_t v) {
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ h >> 32;
  };
  const auto pair = [words](int64_t i) {
    uint64_t v;
    std::memcpy(&v, words + i, sizeof(v));
    return v;
  };
  uint64_t h = 0x9e3779b97f4a7c15u ^ static_cast<uint64_t>(count);
  int64_t i = 0;
  // Long keys in several chains, none of which waits for another.
  if (count >= 16) {
    uint64_t chains[4] = {h, ~h, h + 1, h + 2};
    for (; i + 8 <= count; i += 8) {
      for (int k = 0; k < 4; ++k) chains[k] = mix(chains[k], pair(i + 2 * k));
    }
    h = 0;
    for (const uint64_t chain : chains) h = mix(h, chain);
  }
  for (; i + 2 <= count; i += 2) h = mix(h, pair(i));
  if (i < count) h = mix(h, static_cast<uint32_t>(words[i]));
  return h;
}

// Two keys of `count` words, quicker than memcmp for the few that they are.
inline bool EqualWords(const int32_t* a, const int32_t* b, int64_t count) {
  int64_t i = 0;
  uint64_t difference = 0;
  for (; i + 2 <= count; i += 2) {
    uint64_t x, y;
    std::memcpy(&x, a + i, sizeof(x));
    std::memcpy(&y, b + i, sizeof(y));
    difference |= x ^ y;
  }
  if (i < count) difference |= static_cast<uint32_t>(a[i] ^ b[i]);
  return difference == 0;
}

// A set of keys, each of `words` 32-bit words, numbered in the order in which
// they came. Keys are compared in full: what the hash is decides how long a
// search takes, never what it finds.
class InternTable {
 public:
  // `hash_mask` weakens the hash, for tests.
  InternTable(int64_t words, int64_t max_rows, uint64_t hash_mask = ~uint64_t{})
      : words_(words),
        max_rows_(max_rows),
        hash_mask_(hash_mask),
        keys_(Product({max_rows, words})) {
    Clear();
  }

  int64_t size() const { return size_; }
  // The most rows that it ever had, for which it has memory.
  int64_t taken() const { return taken_; }
  int64_t max_rows() const { return max_rows_; }
  int64_t words() const { return words_; }
  const int32_t* key(int64_t id) const { return keys_.data() + id * words_; }

  void Clear() {
    size_ = 0;
    slots_.assign(kFirstSlots, Slot{});
  }

  // Sets ids[i] to the id of keys[i, 0:words], new or known. False if that took
  // more than `most` rows, or than the table has; the ids are then of no use.
  bool Intern(const int32_t* keys, int64_t count, int32_t* ids,
              int64_t most = std::numeric_limits<int64_t>::max()) {
    most = std::min(most, max_rows_);
    // In blocks: each step asks for the memory that the next one needs.
    constexpr int64_t kBlock = 64;
    uint64_t hashes[kBlock];
    for (int64_t start = 0; start < count; start += kBlock) {
      const int64_t size = std::min(kBlock, count - start);
      const int32_t* block = keys + start * words_;
      while (2 * (size_ + size) > static_cast<int64_t>(slots_.size())) Grow();
      for (int64_t i = 0; i < size; ++i) {
        hashes[i] = HashWords(block + i * words_, words_) & hash_mask_;
        __builtin_prefetch(&slots_[hashes[i] & (slots_.size() - 1)]);
      }
      for (int64_t i = 0; i < size; ++i) {
        const Slot& slot = slots_[hashes[i] & (slots_.size() - 1)];
        if (slot.id_plus_1 != 0) __builtin_prefetch(key(slot.id_plus_1 - 1));
      }
      for (int64_t i = 0; i < size; ++i) {
        const int32_t id = Find(block + i * words_, hashes[i], most);
        if (id < 0) return false;
        ids[start + i] = id;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kFirstSlots = 1024;
  struct Slot {
    uint32_t tag = 0;
    int32_t id_plus_1 = 0;
  };

  int32_t Find(const int32_t* key_words, uint64_t hash, int64_t most) {
    const uint64_t mask = slots_.size() - 1;
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    for (uint64_t i = hash & mask;; i = (i + 1) & mask) {
      Slot& slot = slots_[i];
      if (slot.id_plus_1 == 0) {
        if (size_ >= most) return -1;
        std::memcpy(keys_.data() + size_ * words_, key_words,
                    words_ * sizeof(int32_t));
        slot = {tag, static_cast<int32_t>(++size_)};
        taken_ = std::max(taken_, size_);
        return slot.id_plus_1 - 1;
      }
      if (slot.tag == tag &&
          EqualWords(key(slot.id_plus_1 - 1), key_words, words_)) {
        return slot.id_plus_1 - 1;
      }
    }
  }

  void Grow() {
    std::vector<Slot> slots(slots_.size() * 4);
    const uint64_t mask = slots.size() - 1;
    for (const Slot& slot : slots_) {
      if (slot.id_plus_1 == 0) continue;
      uint64_t i =
          HashWords(key(slot.id_plus_1 - 1), words_) & hash_mask_ & mask;
      while (slots[i].id_plus_1 != 0) i = (i + 1) & mask;
      slots[i] = slot;
    }
    slots_.swap(slots);
  }

  int64_t words_, max_rows_;
  uint64_t hash_mask_;
  int64_t size_ = 0, taken_ = 0;
  LazyBuffer<int32_t> keys_;
  std::vector<Slot> slots_;  // a power of two, at most half of them taken
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_PATCHES_INTERN_H_
