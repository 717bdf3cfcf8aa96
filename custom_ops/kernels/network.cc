#include "custom_ops/kernels/network.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "custom_ops/kernels/float_mode.h"
#include "custom_ops/kernels/pool.h"

namespace reuse_tf {
namespace {

// Content reuse is given up for a while when so large a part of the work at
// changed positions was for patches never seen before...
constexpr double kWorthless = 0.9;
// ... in this many frames, and is tried again after so many others.
constexpr int64_t kTrial = 64, kPause = 1024;

// A recording of more than these, some 400 and 250 MB, is not kept.
constexpr int64_t kMaxContents = 4 << 20, kMaxRuns = 16 << 20;

std::vector<Window> Windows(const NetworkSpec& spec) {
  std::vector<Window> windows;
  for (const auto& stage : spec.stages) windows.push_back(stage.window);
  return windows;
}

// The bound of each map's table: the user's, or so that all tables, with their
// keys, slots and activations, stay within some 400 MB together.
std::vector<int64_t> MaxRows(const NetworkSpec& spec, int64_t max_rows) {
  constexpr int64_t kBytes = 400 << 20;
  constexpr int64_t kSlots = 32;
  int64_t row = spec.frame.pixel_size() + 4 * spec.frame.channels + kSlots;
  for (const auto& stage : spec.stages) {
    row += 4 * stage.window.taps() + 4 * stage.filters + kSlots;
  }
  if (max_rows == 0) max_rows = std::max<int64_t>(1, kBytes / row);
  std::vector<int64_t> result(spec.stages.size() + 1, max_rows);
  if (spec.frame.bytes && spec.frame.channels == 1) result[0] = 256;
  return result;
}

int64_t Leaves(const NetworkSpec& spec) {
  return spec.stages.empty() ? spec.frame.pixels()
                             : spec.stages.back().window.positions();
}

int64_t SumUnits(const NetworkSpec& spec) {
  return spec.average ? spec.channels() : spec.dense[0].units;
}

// How many contents of tiles, with their keys, slots and sums, `bytes` hold.
int64_t MaxTiles(const NetworkSpec& spec, const Tiles& tiles, int64_t bytes) {
  return bytes / (4 * (tiles.key_words() + SumUnits(spec)) + 32);
}

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

std::vector<int64_t> NetworkSpec::WeightSizes() const {
  std::vector<int64_t> sizes;
  int64_t width = frame.channels;
  const auto add_ops = [&](const std::vector<Op>& ops) {
    for (const Op& op : ops) {
      if (!op.batch_norm) continue;
      sizes.insert(sizes.end(), 2 + op.has_gamma + op.has_beta, width);
    }
  };
  add_ops(pixel_ops);
  for (const Stage& stage : stages) {
    width = stage.filters;
    if (stage.kind == Stage::kConv) {
      sizes.push_back(stage.window.taps() * (stage.channels / stage.groups) *
                      stage.filters);
      if (stage.use_bias) sizes.push_back(stage.filters);
    }
    add_ops(stage.ops);
  }
  if (average) {
    add_ops(average_ops);
  } else {
    width *= Leaves(*this);
  }
  for (const Dense& layer : dense) {
    sizes.push_back(width * layer.units);
    width = layer.units;
    if (layer.use_bias) sizes.push_back(width);
    add_ops(layer.ops);
  }
  return sizes;
}

Network::Network(const NetworkSpec& spec, const Options& options)
    : spec_(spec),
      options_(options),
      set_(ActiveInstructionSet()),
      max_rows_(MaxRows(spec, options.max_rows)),
      structure_(
          spec.frame, Windows(spec), max_rows_,
          MaxTiles(spec, Tiles(spec.frame, Windows(spec)), options.tile_bytes),
          options.hash_mask),
      content_rows_(spec.stages.size() + 1),
      temporal_rows_(spec.stages.size() + 1),
      stage_ops_(spec.stages.size()),
      dense_ops_(spec.dense.size()),
      kernels_(spec.stages.size()),
      dense_kernels_(spec.dense.size()),
      dense_biases_(spec.dense.size()),
      sum_(Leaves(spec) * spec.channels(), spec.channels(), SumUnits(spec),
           structure_.tiles().Order(),
           structure_.tiles().count() * Tiles::kPositions) {
  pixel_ops_.spec = &spec_.pixel_ops;
  average_ops_.spec = &spec_.average_ops;
  for (size_t i = 0; i < spec_.stages.size(); ++i) {
    stage_ops_[i].spec = &spec_.stages[i].ops;
  }
  for (size_t i = 0; i < spec_.dense.size(); ++i) {
    dense_ops_[i].spec = &spec_.dense[i].ops;
  }
  Reset();
}

void Network::Reset() {
  Restart(options_.reuse);
  recent_frames_ = recent_changed_ = recent_new_ = 0;
  NetworkStats stats;
  stats.maps.resize(spec_.stages.size() + 1);
  stats_ = std::move(stats);
}

void Network::Restart(Reuse reuse) {
  whole_ = false;
  structure_.Restart(reuse);
  recorder_.reset();
  pixels_known_ = false;
  const bool content = reuse == Reuse::kContent;
  for (size_t i = 0; i < content_rows_.size(); ++i) {
    if (content) {
      temporal_rows_[i] = std::vector<float>();
      if (content_rows_[i].data() == nullptr) {
        content_rows_[i] =
            LazyBuffer<float>(Product({max_rows_[i], channels(i)}));
      }
    } else {
      content_rows_[i] = {};
    }
  }
  if (!content) {
    tile_sums_ = {};
  } else if (tile_sums_.data() == nullptr) {
    tile_sums_ = LazyBuffer<float>(
        MaxTiles(spec_, structure_.tiles(), options_.tile_bytes) *
        sum_.units());
  }
  whole_ = true;
}

void Network::SetWeights(const std::vector<const float*>& weights,
                         bool changed) {
  const FlushDenormals flush;
  auto next = weights.begin();
  const auto set_ops = [&](Ops* ops, int64_t width) {
    ops->ops.clear();
    for (const NetworkSpec::Op& op : *ops->spec) {
      ops->ops.push_back(op.op);
      if (!op.batch_norm) continue;
      RowOp& affine = ops->ops.back();
      affine.kind = RowOp::kAffine;
      const float* gamma = op.has_gamma ? *next++ : nullptr;
      const float* beta = op.has_beta ? *next++ : nullptr;
      const float* mean = *next++;
      const float* variance = *next++;
      affine.scale.resize(width);
      affine.offset.resize(width);
      for (int64_t c = 0; c < width; ++c) {
        affine.scale[c] = (gamma == nullptr ? 1 : gamma[c]) /
                          std::sqrt(variance[c] + op.epsilon);
        affine.offset[c] =
            (beta == nullptr ? 0 : beta[c]) - mean[c] * affine.scale[c];
      }
    }
  };
  set_ops(&pixel_ops_, spec_.frame.channels);
  for (size_t i = 0; i < spec_.stages.size(); ++i) {
    const auto& stage = spec_.stages[i];
    if (stage.kind == NetworkSpec::Stage::kConv) {
      const float* kernel = *next++;
      const float* bias = stage.use_bias ? *next++ : nullptr;
      kernels_[i].Pack(kernel, bias, stage.window.taps(), stage.channels,
                       stage.filters, stage.groups, set_);
    }
    set_ops(&stage_ops_[i], stage.filters);
  }
  if (spec_.average) set_ops(&average_ops_, spec_.channels());
  for (size_t i = 0; i < spec_.dense.size(); ++i) {
    dense_kernels_[i] = *next++;
    dense_biases_[i] = spec_.dense[i].use_bias ? *next++ : nullptr;
    set_ops(&dense_ops_[i], spec_.dense[i].units);
  }
  if (changed) Restart(reuse());
}

void Network::Step(const void* frames, int64_t streams,
                   const ParallelFor& parallel, float* outputs) {
  const FlushDenormals flush;
  if (!whole_) Restart(reuse());
  try {
    TryStep(static_cast<const uint8_t*>(frames), streams, parallel, outputs);
  } catch (...) {
    whole_ = false;
    recorder_.reset();
    throw;
  }
}

void Network::TryStep(const uint8_t* frames, int64_t streams,
                      const ParallelFor& parallel, float* outputs) {
  AdaptReuse();
  const double begin = Seconds();
  if (recording_ == Recording::kAsked) {
    recording_ = Recording::kRunning;
    Restart(options_.reuse);
    recent_frames_ = recent_changed_ = recent_new_ = 0;
    if (reuse() == Reuse::kContent) {
      recorder_ = std::make_unique<EpisodeRecorder>(structure_.tiles(),
                                                    kMaxContents, kMaxRuns);
    }
  }
  if (!structure_.Step(frames, streams, parallel)) {
    // A table is full: the frame is computed afresh in empty ones.
    ++stats_.clears;
    Restart(reuse());
    if (!structure_.Step(frames, streams, parallel)) {
      // One frame alone does not fit.
      ++stats_.switches;
      recent_frames_ = 0;
      Restart(Reuse::kTemporal);
      structure_.Step(frames, streams, parallel);
    }
  }
  if (recorder_ != nullptr && !recorder_->Add(structure_)) recorder_.reset();
  const double structured = Seconds();
  trees_.resize(Product({streams, sum_.nodes(), sum_.units()}));
  if (reuse() == Reuse::kTemporal) {
    for (size_t i = 0; i < temporal_rows_.size(); ++i) {
      temporal_rows_[i].resize(
          Product({streams, structure_.maps()[i].pixels(), channels(i)}));
    }
  }
  ComputePixels();
  for (size_t i = 0; i < spec_.stages.size(); ++i) ComputeRows(i, parallel);
  const double computed = Seconds();
  ComputeOutputs(parallel, outputs);
  const double end = Seconds();
  stats_.structure_seconds += structured - begin;
  stats_.rows_seconds += computed - structured;
  stats_.dense_seconds += end - computed;
  CountStep();
}

std::unique_ptr<EpisodeRecorder> Network::TakeRecording() {
  recording_ = Recording::kNone;
  return std::move(recorder_);
}

void Network::Release() {
  recording_ = Recording::kNone;
  // Before new ones are made, and by their pages. (An assignment of {} would
  // leave a vector its memory.)
  for (auto& rows : content_rows_) rows = {};
  for (auto& rows : temporal_rows_) rows = std::vector<float>();
  trees_ = std::vector<float>();
  tile_sums_ = {};
  structure_.Release();
  Restart(options_.reuse);
}

void Network::ComputePixels() {
  const NewRows& pixels = structure_.maps()[0].rows;
  const int64_t channels = spec_.frame.channels;
  const bool all_bytes = pixels.raw_stride == 1;
  if (all_bytes && pixels_known_) return;
  pixels_known_ = all_bytes;
  for (int64_t i = 0; i < pixels.count; ++i) {
    const uint8_t* raw = pixels.raw + i * pixels.raw_stride;
    const int64_t id = pixels.ids == nullptr ? pixels.first + i : pixels.ids[i];
    float* row = rows(0) + id * channels;
    if (spec_.frame.bytes) {
      std::copy(raw, raw + channels, row);
    } else {
      std::memcpy(row, raw, channels * sizeof(float));
    }
    pixel_ops_.ops.Apply(row, channels);
  }
}

void Network::ComputeRows(size_t index, const ParallelFor& parallel) {
  const auto& stage = spec_.stages[index];
  const NewRows& what = structure_.maps()[index + 1].rows;
  const float* from = rows(index);
  float* to = rows(index + 1) + what.first * stage.filters;
  const RowOps& ops = stage_ops_[index].ops;
  if (stage.kind != NetworkSpec::Stage::kConv) {
    const int64_t taps = stage.window.taps(), channels = stage.channels;
    const Pooling kind = stage.kind == NetworkSpec::Stage::kMaxPool
                             ? Pooling::kMax
                             : Pooling::kMean;
    for (int64_t i = 0; i < what.count; ++i) {
      float* row = to + (what.ids == nullptr ? i : what.ids[i]) * channels;
      PoolPatches(kind, from, channels, what.patches + i * taps, taps, 1, row);
      ops.Apply(row, channels);
    }
    return;
  }
  const PackedKernel& kernel = kernels_[index];
  kernel.ForBlocks(what.count, parallel, [&](int64_t first, int64_t size) {
    kernel.Multiply(from, what.patches + first * kernel.taps(), size, ops,
                    what.ids == nullptr ? nullptr : what.ids + first,
                    what.ids == nullptr ? to + first * stage.filters : to);
  });
}

void Network::ComputeOutputs(const ParallelFor& parallel, float* outputs) {
  const Structure::Map& map = structure_.maps().back();
  const size_t last = spec_.stages.size();
  const int64_t streams = structure_.streams(), leaves = map.pixels();
  const int64_t channels = this->channels(last), units = sum_.units();
  changes_.clear();
  for (const int32_t at : map.positions) {
    const int32_t stream = at / static_cast<int32_t>(leaves);
    changes_.push_back({static_cast<int32_t>(at - stream * leaves), stream});
  }
  if (streams > 1) SortByLeaf(&changes_);
  const float* from = rows(last);
  const auto row_of = [&](const LeafChange& change) {
    const int64_t at = change.stream * leaves + change.leaf;
    return from + structure_.id(last, at) * channels;
  };
  float* trees = trees_.data();
  if (spec_.average) {
    sum_.CopyLeaves(changes_, row_of, trees);
  } else {
    sum_.ComputeLeaves(changes_, row_of, dense_kernels_[0], set_, parallel,
                       trees);
  }
  if (reuse() == Reuse::kTemporal) {
    sum_.UpdateSums(changes_, streams, set_, trees);
  } else {
    UpdateTiles();
  }
  thread_local std::vector<float> values, next;
  for (int64_t n = 0; n < streams; ++n) {
    const float* root = trees_.data() + ((n + 1) * sum_.nodes() - 1) * units;
    values.assign(root, root + units);
    size_t layer = 0;
    const auto finish = [&] {
      const float* bias = dense_biases_[layer];
      if (bias != nullptr) {
        for (size_t u = 0; u < values.size(); ++u) values[u] += bias[u];
      }
      dense_ops_[layer].ops.Apply(values.data(), values.size());
      ++layer;
    };
    if (spec_.average) {
      for (float& value : values) value /= leaves;
      average_ops_.ops.Apply(values.data(), units);
    } else {
      finish();
    }
    while (layer < spec_.dense.size()) {
      const int64_t width = spec_.dense[layer].units;
      const float* kernel = dense_kernels_[layer];
      next.resize(width);
      const float* from_values = values.data();
      float* to = next.data();
      set_.pairs(&from_values, &kernel, 1, values.size(), width,
                 kernel + values.size() * width, &to);
      values.swap(next);
      finish();
    }
    std::copy(values.begin(), values.end(), outputs + n * spec_.units());
  }
}

// Sums up new tiles, takes the others from memory, and sums up what depends on
// them.
void Network::UpdateTiles() {
  const SumTree& tree = sum_.tree();
  const int64_t streams = structure_.streams(), units = sum_.units();
  const auto& changes = structure_.changed_tiles();
  constexpr size_t kAhead = 8;
  changed_tiles_.assign(streams * tree.words(1), 0);
  for (size_t i = 0; i < changes.size(); ++i) {
    if (i + kAhead < changes.size() && changes[i + kAhead].id >= 0) {
      __builtin_prefetch(tile_sums_.data() + changes[i + kAhead].id * units);
    }
    const Structure::TileChange& at = changes[i];
    float* nodes = trees_.data() + at.stream * tree.nodes() * units;
    float* sum = nodes + (tree.first(1) + at.tile) * units;
    const bool is_new = at.id < 0 || at.id >= structure_.first_new_tile();
    if (is_new) tree.Sum(1, at.tile, units, set_, nodes);
    if (at.id >= 0) {
      float* known = tile_sums_.data() + at.id * units;
      std::memcpy(is_new ? known : sum, is_new ? sum : known,
                  units * sizeof(float));
    }
    changed_tiles_[at.stream * tree.words(1) + at.tile / 64] |=
        uint64_t{1} << (at.tile % 64);
  }
  for (int64_t n = 0; n < streams; ++n) {
    tree.SumAbove(1, changed_tiles_.data() + n * tree.words(1), units, set_,
                  trees_.data() + n * tree.nodes() * units);
  }
}

void Network::CountStep() {
  const int64_t streams = structure_.streams();
  stats_.frames += streams;
  ++recent_frames_;
  for (size_t i = 0; i <= spec_.stages.size(); ++i) {
    // The last entry is the dense sum over the last map.
    const bool dense = i == spec_.stages.size();
    const Structure::Map& map =
        dense ? structure_.maps().back() : structure_.maps()[i + 1];
    const int64_t cost =
        dense ? (spec_.average ? 0 : spec_.channels() * sum_.units())
              : kernels_[i].cost();
    const int64_t changed = map.changed.Count();
    const int64_t made = dense ? changes_.size() : map.rows.count;
    NetworkStats::Map& stats = stats_.maps[i];
    stats.positions += streams * map.pixels();
    stats.changed += changed;
    stats.new_rows += made;
    stats.multiply_adds += made * cost;
    stats.dense_multiply_adds += streams * map.pixels() * cost;
    if (!dense && !structure_.had_fresh_streams()) {
      recent_changed_ += changed * cost;
      recent_new_ += made * cost;
    }
  }
}

void Network::AdaptReuse() {
  if (options_.reuse != Reuse::kContent) return;
  const bool content = reuse() == Reuse::kContent;
  if (recent_frames_ < (content ? kTrial : kPause)) return;
  if (!content || recent_new_ > kWorthless * recent_changed_) {
    ++stats_.switches;
    Restart(content ? Reuse::kTemporal : Reuse::kContent);
  }
  recent_frames_ = recent_changed_ = recent_new_ = 0;
}

std::vector<int64_t> Network::Rows() const {
  std::vector<int64_t> rows;
  for (const Structure::Map& map : structure_.maps()) {
    rows.push_back(reuse() == Reuse::kTemporal
                       ? structure_.streams() * map.pixels()
                   : map.table == nullptr ? 256
                                          : map.table->size());
  }
  return rows;
}

}  // namespace reuse_tf
