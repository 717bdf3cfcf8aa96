#include "custom_ops/kernels/graph/gradients.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "custom_ops/kernels/arithmetic/dense_sum.h"
#include "custom_ops/kernels/arithmetic/leaf_weights.h"
#include "custom_ops/kernels/arithmetic/rows.h"

namespace reuse_tf {
namespace {

// kernel_gradient [depth, filters] of one group = the sum over patches of
// patch^T * gradient. Patches are cut into a fixed number of parts, each summed
// for itself, block after block, and the parts are summed in their order.
void KernelGradient(const PatchShape& shape, int64_t group, const float* rows,
                    const int32_t* patches, const float* gradient,
                    const ParallelFor& parallel, float* kernel_gradient,
                    float* bias_gradient) {
  constexpr int64_t kBlock = 256, kParts = 8;
  const InstructionSet& set = ActiveInstructionSet();
  const int64_t channels = shape.channels / shape.groups;
  const int64_t filters = shape.filters / shape.groups;
  const int64_t depth = shape.depth();
  const int64_t blocks = (shape.patches + kBlock - 1) / kBlock;
  const int64_t parts = std::min(kParts, blocks);
  // Of the kernel and, as one more row, of the bias.
  const int64_t size_of_part = (depth + 1) * filters;
  std::vector<float> sums(parts * size_of_part, 0);
  parallel(parts, shape.patches / kParts * depth * filters / 16,
           [&](int64_t begin, int64_t end) {
             std::vector<float> gathered(kBlock * depth);
             std::vector<float> panels(kBlock * set.Padded(filters));
             std::vector<float> product(depth * filters);
             for (int64_t part = begin; part < end; ++part) {
               float* sum = sums.data() + part * size_of_part;
               float* bias = sum + depth * filters;
               for (int64_t block = part * blocks / parts;
                    block < (part + 1) * blocks / parts; ++block) {
                 const int64_t first = block * kBlock;
                 const int64_t size = std::min(kBlock, shape.patches - first);
                 GatherRows(rows + group * channels, shape.channels, channels,
                            patches + first * shape.taps, size * shape.taps,
                            gathered.data());
                 const float* block_gradient =
                     gradient + first * shape.filters + group * filters;
                 for (int64_t i = 0; i < size; ++i) {
                   const float* row = block_gradient + i * shape.filters;
                   for (int64_t f = 0; f < filters; ++f) bias[f] += row[f];
                 }
                 set.Pack(block_gradient, shape.filters, size, filters,
                          panels.data());
                 // Row by row of the transposed patches.
                 set.Multiply(gathered.data(), 1, depth, depth, size,
                              panels.data(), nullptr, filters, [&](int64_t i) {
                                return product.data() + i * filters;
                              });
                 for (int64_t i = 0; i < depth * filters; ++i) {
                   sum[i] += product[i];
                 }
               }
             }
           });
  for (int64_t part = 0; part < parts; ++part) {
    const float* sum = sums.data() + part * size_of_part;
    for (int64_t i = 0; i <= depth; ++i) {
      float* to =
          (i < depth ? kernel_gradient + i * shape.filters : bias_gradient) +
          group * filters;
      for (int64_t f = 0; f < filters; ++f) to[f] += sum[i * filters + f];
    }
  }
}

// sums[row_of(i), 0:channels] += values[i, :] for `count` rows of values, whose
// sums lie `stride` values apart; skips rows of -1. Each thread has channels of
// its own: no two write to the same place, and additions keep their order.
template <typename RowOf>
void AddToRows(const float* values, int64_t channels, int64_t count,
               const RowOf& row_of, int64_t stride, const ParallelFor& parallel,
               float* sums) {
  constexpr int64_t kChannels = 16;
  parallel((channels + kChannels - 1) / kChannels, count * kChannels,
           [=, &row_of](int64_t begin, int64_t end) {
             const int64_t first = begin * kChannels;
             const int64_t last = std::min(channels, end * kChannels);
             for (int64_t i = 0; i < count; ++i) {
               const int64_t row = row_of(i);
               if (row < 0) continue;
               const float* value = values + i * channels;
               float* sum = sums + row * stride;
               for (int64_t c = first; c < last; ++c) sum[c] += value[c];
             }
           });
}

// rows_gradient += gradient * kernel^T, scattered to the rows of each patch,
// for one group.
void RowsGradient(const PatchShape& shape, int64_t group,
                  const int32_t* patches, const float* kernel,
                  const float* gradient, const ParallelFor& parallel,
                  float* rows_gradient) {
  constexpr int64_t kBlock = 64, kBlocks = 32;
  const InstructionSet& set = ActiveInstructionSet();
  const int64_t channels = shape.channels / shape.groups;
  const int64_t filters = shape.filters / shape.groups;
  const int64_t depth = shape.depth();
  std::vector<float> panels(filters * set.Padded(depth));
  set.PackTransposed(kernel + group * filters, shape.filters, filters, depth,
                     panels.data());
  std::vector<float> products(std::min(kBlock * kBlocks, shape.patches) *
                              depth);
  for (int64_t start = 0; start < shape.patches; start += kBlock * kBlocks) {
    const int64_t size = std::min(kBlock * kBlocks, shape.patches - start);
    parallel((size + kBlock - 1) / kBlock, kBlock * depth * filters / 16,
             [&](int64_t begin, int64_t end) {
               const int64_t first = begin * kBlock;
               const int64_t last = std::min(size, end * kBlock);
               const float* from =
                   gradient + (start + first) * shape.filters + group * filters;
               set.Multiply(from, shape.filters, 1, last - first, filters,
                            panels.data(), nullptr, depth, [&](int64_t i) {
                              return products.data() + (first + i) * depth;
                            });
             });
    const int32_t* ids = patches + start * shape.taps;
    AddToRows(
        products.data(), channels, size * shape.taps,
        [ids](int64_t i) { return ids[i]; }, shape.channels, parallel,
        rows_gradient + group * channels);
  }
}

// All gradients of a convolution whose every channel is a group of one filter.
// Sums are those of blocks of patches; each thread has channels of its own.
void DepthwiseGradients(const PatchShape& shape, const float* rows,
                        const int32_t* patches, const float* kernel,
                        const float* gradient, const ParallelFor& parallel,
                        float* rows_gradient, float* kernel_gradient,
                        float* bias_gradient) {
  constexpr int64_t kBlock = 256, kChannels = 16;
  const int64_t channels = shape.channels, taps = shape.taps;
  const std::vector<float> padding(channels, 0);
  parallel((channels + kChannels - 1) / kChannels,
           shape.patches * taps * kChannels, [&](int64_t begin, int64_t end) {
             const int64_t first = begin * kChannels;
             const int64_t width = std::min(channels, end * kChannels) - first;
             std::vector<float> sums;  // of each tap, then of the bias
             for (int64_t i = 0; i < shape.patches; ++i) {
               if (i % kBlock == 0) sums.assign((taps + 1) * width, 0);
               const float* of_patch = gradient + i * channels + first;
               for (int64_t t = 0; t < taps; ++t) {
                 const int64_t row = patches[i * taps + t];
                 const float* from =
                     (row < 0 ? padding.data() : rows + row * channels) + first;
                 float* sum = sums.data() + t * width;
                 for (int64_t c = 0; c < width; ++c) {
                   sum[c] += from[c] * of_patch[c];
                 }
                 if (row < 0 || rows_gradient == nullptr) continue;
                 const float* weights = kernel + t * channels + first;
                 float* to = rows_gradient + row * channels + first;
                 for (int64_t c = 0; c < width; ++c) {
                   to[c] += weights[c] * of_patch[c];
                 }
               }
               float* bias = sums.data() + taps * width;
               for (int64_t c = 0; c < width; ++c) bias[c] += of_patch[c];
               if (i % kBlock != kBlock - 1 && i != shape.patches - 1) continue;
               for (int64_t t = 0; t <= taps; ++t) {
                 float* to = (t < taps ? kernel_gradient + t * channels
                                       : bias_gradient) +
                             first;
                 const float* sum = sums.data() + t * width;
                 for (int64_t c = 0; c < width; ++c) to[c] += sum[c];
               }
             }
           });
}

}  // namespace

void PatchGradients(const PatchShape& shape, const float* rows,
                    const int32_t* patches, const float* kernel,
                    const float* relu_products, const float* gradient,
                    const ParallelFor& parallel, float* rows_gradient,
                    float* kernel_gradient, float* bias_gradient) {
  std::unique_ptr<float[]> masked;
  if (relu_products != nullptr) {
    masked.reset(new float[shape.patches * shape.filters]);
    float* to = masked.get();
    parallel(shape.patches, shape.filters, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin * shape.filters; i < end * shape.filters; ++i) {
        // Read either way, for the compiler to use vectors.
        const float value = gradient[i];
        to[i] = relu_products[i] > 0 ? value : 0.f;
      }
    });
    gradient = to;
  }
  if (shape.groups > 1 && shape.channels == shape.groups &&
      shape.filters == shape.groups) {
    DepthwiseGradients(shape, rows, patches, kernel, gradient, parallel,
                       rows_gradient, kernel_gradient, bias_gradient);
    return;
  }
  for (int64_t group = 0; group < shape.groups; ++group) {
    KernelGradient(shape, group, rows, patches, gradient, parallel,
                   kernel_gradient, bias_gradient);
    if (rows_gradient == nullptr) continue;
    RowsGradient(shape, group, patches, kernel, gradient, parallel,
                 rows_gradient);
  }
}

void PairProducts(const Pair* pairs, int64_t count, const float* rows,
                  int64_t channels, const float* weights, int64_t positions,
                  int64_t units, const ParallelFor& parallel, float* out) {
  LeafWeights(weights, positions * channels, channels, units)
      .Multiply(
          count, [=](int64_t i) { return pairs[i].position; },
          [=](int64_t i) { return rows + pairs[i].row * channels; },
          [=](int64_t i) { return out + i * units; }, ActiveInstructionSet(),
          parallel);
}

namespace {

// The gradients of the pairs [begin, end) of one position: of_rows [pairs,
// channels] for their rows, and weights_gradient [channels, units].
void PositionGradients(const Pair* pairs, int64_t begin, int64_t end,
                       const float* rows, int64_t channels,
                       const float* weights, int64_t units,
                       const PairUses& uses, const float* gradient,
                       const InstructionSet& set, float* of_rows,
                       float* weights_gradient) {
  const int64_t count = end - begin;
  if (count == 0) {
    std::fill_n(weights_gradient, channels * units, 0.f);
    return;
  }
  thread_local std::vector<float> of_pairs, gathered, panels;
  of_pairs.assign(count * units, 0.f);
  gathered.resize(count * channels);
  for (int64_t i = 0; i < count; ++i) {
    float* of_pair = of_pairs.data() + i * units;
    for (int64_t use = uses.starts[begin + i]; use < uses.starts[begin + i + 1];
         ++use) {
      const float* from = gradient + uses.contents[use] * units;
      for (int64_t u = 0; u < units; ++u) of_pair[u] += from[u];
    }
    std::memcpy(gathered.data() + i * channels,
                rows + pairs[begin + i].row * channels,
                channels * sizeof(float));
  }
  // The gradients of the pairs, times the transposed weights.
  panels.resize(set.Padded(channels) * units);
  set.PackTransposed(weights, units, units, channels, panels.data());
  set.Multiply(of_pairs.data(), units, 1, count, units, panels.data(), nullptr,
               channels, [&](int64_t i) { return of_rows + i * channels; });
  // The rows, transposed, times the gradients of the pairs.
  panels.resize(set.Padded(units) * count);
  set.Pack(of_pairs.data(), units, count, units, panels.data());
  set.Multiply(gathered.data(), 1, channels, channels, count, panels.data(),
               nullptr, units,
               [&](int64_t c) { return weights_gradient + c * units; });
}

}  // namespace

PairUses::PairUses(const int32_t* ids, int64_t count, int64_t width,
                   int64_t pairs)
    : starts(pairs + 2, 0) {
  for (int64_t i = 0; i < count * width; ++i) {
    if (ids[i] >= 0) ++starts[ids[i] + 2];
  }
  for (int64_t i = 1; i < pairs + 2; ++i) starts[i] += starts[i - 1];
  contents.resize(starts.back());
  // Each start moves to its end, which is the next one's place.
  for (int64_t i = 0; i < count * width; ++i) {
    if (ids[i] < 0) continue;
    contents[starts[ids[i] + 1]++] = static_cast<int32_t>(i / width);
  }
  starts.pop_back();
}

void PairGradients(const Pair* pairs, int64_t count, const float* rows,
                   int64_t channels, const float* weights, int64_t positions,
                   int64_t units, const PairUses& uses, const float* gradient,
                   const ParallelFor& parallel, float* rows_gradient,
                   float* weights_gradient) {
  // Of so many pairs at once the gradients of rows are kept, until they are
  // added to those of the rows that they belong to.
  constexpr int64_t kPairs = 1 << 14;
  const InstructionSet& set = ActiveInstructionSet();
  std::vector<int64_t> starts(positions + 1, 0);
  for (int64_t i = 0; i < count; ++i) ++starts[pairs[i].position + 1];
  for (int64_t p = 0; p < positions; ++p) starts[p + 1] += starts[p];
  std::vector<float> of_rows;
  for (int64_t first = 0, last; first < positions; first = last) {
    last = first + 1;
    while (last < positions && starts[last + 1] - starts[first] <= kPairs) {
      ++last;
    }
    const int64_t begin = starts[first], size = starts[last] - begin;
    of_rows.resize(size * channels);
    parallel(last - first,
             (size / (last - first) + 1) * (channels / 4 + 1) * units,
             [=, &set, &uses, &starts, &of_rows](int64_t from, int64_t to) {
               for (int64_t p = first + from; p < first + to; ++p) {
                 PositionGradients(
                     pairs, starts[p], starts[p + 1], rows, channels,
                     weights + p * channels * units, units, uses, gradient, set,
                     of_rows.data() + (starts[p] - begin) * channels,
                     weights_gradient + p * channels * units);
               }
             });
    AddToRows(
        of_rows.data(), channels, size,
        [=](int64_t i) { return pairs[begin + i].row; }, channels, parallel,
        rows_gradient);
  }
}

bool RunSums(const Run* runs, int64_t count, const float* values, int64_t units,
             int64_t frames, float* out) {
  const InstructionSet& set = ActiveInstructionSet();
  // At [2 * t] the runs that end at frame t, at [2 * t + 1] those that begin
  // there, each as a range of `order`.
  std::vector<int64_t> starts(2 * frames + 4, 0);
  int32_t tiles = 0;
  for (int64_t i = 0; i < count; ++i) {
    tiles = std::max(tiles, runs[i].tile + 1);
    if (runs[i].begin == runs[i].end) continue;
    ++starts[2 * runs[i].begin + 1 + 2];
    ++starts[2 * runs[i].end + 2];
  }
  for (size_t k = 1; k < starts.size(); ++k) starts[k] += starts[k - 1];
  std::vector<int32_t> order(starts.back());
  // Each start moves to its end, which is the next one's place.
  for (int64_t i = 0; i < count; ++i) {
    if (runs[i].begin == runs[i].end) continue;
    order[starts[2 * runs[i].begin + 1 + 1]++] = static_cast<int32_t>(i);
    order[starts[2 * runs[i].end + 1]++] = static_cast<int32_t>(i);
  }
  const SumTree tree(tiles);
  std::vector<float> nodes(tree.nodes() * units, 0.f);
  std::vector<uint64_t> changed(tree.words(0));
  std::vector<bool> shows(tiles, false);
  for (int64_t t = 0; t < frames; ++t) {
    std::fill(changed.begin(), changed.end(), 0);
    const auto for_each = [&](int64_t k, const auto& f) {
      for (int64_t i = starts[k]; i < starts[k + 1]; ++i) {
        const Run& run = runs[order[i]];
        changed[run.tile / 64] |= uint64_t{1} << (run.tile % 64);
        f(run, nodes.data() + run.tile * units);
      }
    };
    bool overlap = false;
    for_each(2 * t, [&](const Run& run, float* leaf) {
      shows[run.tile] = false;
      std::fill_n(leaf, units, 0.f);
    });
    for_each(2 * t + 1, [&](const Run& run, float* leaf) {
      overlap |= shows[run.tile];
      shows[run.tile] = true;
      std::copy_n(values + run.content * units, units, leaf);
    });
    if (overlap) return false;
    tree.SumAbove(0, changed.data(), units, set, nodes.data());
    std::copy_n(nodes.data() + (tree.nodes() - 1) * units, units,
                out + t * units);
  }
  return true;
}

void RunGradients(const Run* runs, int64_t count, const float* gradient,
                  int64_t units, int64_t frames, float* values_gradient) {
  // A segment tree: node i is the sum of nodes 2 * i and 2 * i + 1, and those
  // from `frames` on are the frames.
  std::vector<double> nodes(2 * frames * units);
  std::copy_n(gradient, frames * units, nodes.data() + frames * units);
  for (int64_t i = frames - 1; i > 0; --i) {
    double* node = nodes.data() + i * units;
    for (int64_t u = 0; u < units; ++u) {
      node[u] = node[i * units + u] + node[(i + 1) * units + u];
    }
  }
  std::vector<double> sum(units);
  for (int64_t i = 0; i < count; ++i) {
    std::fill(sum.begin(), sum.end(), 0);
    const auto add = [&](int64_t node) {
      const double* from = nodes.data() + node * units;
      for (int64_t u = 0; u < units; ++u) sum[u] += from[u];
    };
    int64_t begin = runs[i].begin + frames, end = runs[i].end + frames;
    for (; begin < end; begin /= 2, end /= 2) {
      if (begin % 2 == 1) add(begin++);
      if (end % 2 == 1) add(--end);
    }
    float* to = values_gradient + runs[i].content * units;
    for (int64_t u = 0; u < units; ++u) to[u] += static_cast<float>(sum[u]);
  }
}

}  // namespace reuse_tf
