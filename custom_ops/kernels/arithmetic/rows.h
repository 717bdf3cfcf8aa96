// Moving rows of an activation table: gather, its transpose, and scatter.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_ROWS_H_
#define REUSE_TF_KERNELS_ARITHMETIC_ROWS_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace reuse_tf {

namespace internal {

// `channels` is a number, or a constant of a type of its own: a few values are
// moved by one instruction, which memcpy of a length that the compiler does not
// know is not.
template <typename T, typename Channels>
void GatherRows(const T* rows, int64_t stride, Channels channels,
                const int32_t* ids, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i, out += channels) {
    if (ids[i] < 0) {
      std::memset(static_cast<void*>(out), 0, channels * sizeof(T));
    } else {
      std::memcpy(static_cast<void*>(out), rows + ids[i] * stride,
                  channels * sizeof(T));
    }
  }
}

// The same of whole rows, of which those behind each other are moved at once.
template <typename T>
void GatherRuns(const T* rows, int64_t channels, const int32_t* ids,
                int64_t count, T* out) {
  for (int64_t i = 0, next; i < count; out += (next - i) * channels, i = next) {
    next = i + 1;
    if (ids[i] < 0) {
      std::memset(static_cast<void*>(out), 0, channels * sizeof(T));
      continue;
    }
    while (next < count && ids[next] == ids[next - 1] + 1) ++next;
    std::memcpy(static_cast<void*>(out), rows + ids[i] * channels,
                (next - i) * channels * sizeof(T));
  }
}

}  // namespace internal

// out[i, :] = rows[ids[i], :], or zeros where ids[i] is -1; `channels` values
// of each row, whose starts lie `stride` values apart.
template <typename T>
inline void GatherRows(const T* rows, int64_t stride, int64_t channels,
                       const int32_t* ids, int64_t count, T* out) {
  const auto gather = [&](auto channels) {
    internal::GatherRows(rows, stride, channels, ids, count, out);
  };
  switch (channels) {
    case 1:
      return gather(std::integral_constant<int64_t, 1>());
    case 2:
      return gather(std::integral_constant<int64_t, 2>());
    case 4:
      return gather(std::integral_constant<int64_t, 4>());
    case 8:
      return gather(std::integral_constant<int64_t, 8>());
    default:
      return stride == channels
                 ? internal::GatherRuns(rows, channels, ids, count, out)
                 : gather(channels);
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

#endif  // REUSE_TF_KERNELS_ARITHMETIC_ROWS_H_
