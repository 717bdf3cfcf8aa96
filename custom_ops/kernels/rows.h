// Moving rows of an activation table: gather, its transpose, and scatter.
#ifndef REUSE_TF_KERNELS_ROWS_H_
#define REUSE_TF_KERNELS_ROWS_H_

#include <cstdint>
#include <cstring>

namespace reuse_tf {

// out[i, :] = rows[ids[i], :], or zeros where ids[i] is -1; `channels` values
// of each row, whose starts lie `stride` values apart.
template <typename T>
inline void GatherRows(const T* rows, int64_t stride, int64_t channels,
                       const int32_t* ids, int64_t count, T* out) {
  // A single value is moved by one instruction, which memcpy of a length that
  // the compiler does not know is not.
  if (channels == 1) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = ids[i] < 0 ? T(0) : rows[ids[i] * stride];
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i, out += channels) {
    if (ids[i] < 0) {
      std::memset(static_cast<void*>(out), 0, channels * sizeof(T));
    } else {
      std::memcpy(static_cast<void*>(out), rows + ids[i] * stride,
                  channels * sizeof(T));
    }
  }
}

// sums[ids[i], :] += values[i, :], skipping ids of -1: the transpose of
// GatherRows. Rows are added in the order of i.
template <typename T>
inline void ScatterAddRows(const T* values, int64_t channels,
                           const int32_t* ids, int64_t count, T* sums) {
  for (int64_t i = 0; i < count; ++i, values += channels) {
    if (ids[i] < 0) continue;
    T* sum = sums + ids[i] * channels;
    for (int64_t c = 0; c < channels; ++c) sum[c] += values[c];
  }
}

// table[ids[i], :] = rows[i, :]. Of equal ids the last one holds.
template <typename T>
inline void ScatterRows(const T* rows, int64_t channels, const int32_t* ids,
                        int64_t count, T* table) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(static_cast<void*>(table + ids[i] * channels),
                rows + i * channels, channels * sizeof(T));
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ROWS_H_
