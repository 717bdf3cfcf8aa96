#include "custom_ops/kernels/graph/structure.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace reuse_tf {
namespace {

// Tiles over more pixels than these words hold are seldom seen twice.
constexpr int64_t kMaxTileWords = 1024;

// Whether a map is only summed up, tile by tile.
bool OnlySummed(const Graph& graph, int32_t map) {
  for (const int32_t output : graph.outputs) {
    if (output == map) return false;
  }
  for (const Node& node : graph.nodes) {
    if (node.whole() && node.kind != Node::kDense &&
        node.kind != Node::kGlobal && node.inputs[0] == map) {
      return false;
    }
  }
  return true;
}

void SetLines(int64_t first, int64_t count, PixelMask* mask) {
  for (int64_t y = 0; y < count; ++y) mask->SetLine(first + y);
}

}  // namespace

Structure::Structure(const Graph& graph, Bounds bounds,
                     const std::vector<int64_t>& max_tiles, uint64_t hash_mask)
    : graph_(graph),
      bounds_(std::move(bounds)),
      hash_mask_(hash_mask),
      maps_(graph.nodes.size()) {
  for (size_t i = 0; i < maps_.size(); ++i) {
    maps_[i].height = graph.nodes[i].height;
    maps_[i].width = graph.nodes[i].width;
  }
  for (const int32_t node : graph.Shown()) {
    shown_.emplace_back(graph, node);
    Shown& shown = shown_.back();
    if (shown.tiles.key_words() <= kMaxTileWords && OnlySummed(graph, node)) {
      shown.max_contents = max_tiles[shown_.size() - 1];
    }
  }
  Restart(std::vector<Reuse>(maps_.size(), Reuse::kContent));
}

void Structure::Restart(const std::vector<Reuse>& reuse) {
  fresh_.clear();  // All streams of the next step are new.
  frames_ = 0;
  for (size_t i = 0; i < maps_.size(); ++i) {
    Map& map = maps_[i];
    const Node& node = graph_.nodes[i];
    map.reuse = reuse[i];
    if (!map.content()) {
      map.table.reset();
      map.ids = std::vector<int32_t>();
    } else if (map.table != nullptr) {
      map.table->Clear();
    } else if (node.has_patches()) {
      map.table = std::make_unique<InternTable>(node.taps(), bounds_.rows[i],
                                                hash_mask_);
    } else if (i == 0 && !graph_.frame.is_byte()) {
      map.table = std::make_unique<InternTable>(
          (graph_.frame.pixel_size() + 3) / 4, bounds_.rows[i], hash_mask_);
    }
  }
  CountTaken();
  for (Shown& shown : shown_) {
    shown.changed.clear();
    if (!maps_[shown.node].content() || shown.max_contents == 0) {
      shown.table.reset();
    } else if (shown.table != nullptr) {
      shown.table->Clear();
    } else {
      shown.table = std::make_unique<InternTable>(
          shown.tiles.key_words(), shown.max_contents, hash_mask_);
    }
  }
}

void Structure::CountTaken() {
  taken_ = 0;
  for (size_t i = 0; i < maps_.size() && bounds_.bytes > 0; ++i) {
    const InternTable* table = maps_[i].table.get();
    if (table != nullptr) taken_ += table->taken() * bounds_.row_bytes[i];
  }
}

void Structure::MakeTemporal(int64_t index) {
  Map& map = maps_[index];
  map.reuse = Reuse::kTemporal;
  map.table.reset();
  CountTaken();
  map.ids = std::vector<int32_t>();
  for (Shown& shown : shown_) {
    if (shown.node != index) continue;
    shown.table.reset();
    shown.changed.clear();
  }
}

void Structure::SetStreams(int64_t streams) {
  if (streams != this->streams()) {
    const FrameShape& frame = graph_.frame;
    seen_.resize(Product({streams, frame.pixels(), frame.pixel_size()}));
    for (Map& map : maps_) {
      map.stale.Extend(streams * map.height, map.width);
      if (map.content()) map.ids.resize(streams * map.pixels());
    }
    fresh_.resize(streams, true);
  }
  had_fresh_ = std::find(fresh_.begin(), fresh_.end(), true) != fresh_.end();
}

bool Structure::Step(const uint8_t* frames, int64_t streams,
                     const ParallelFor& parallel) {
  SetStreams(streams);
  if (!UpdatePixels(frames, parallel)) return false;
  for (size_t i = 1; i < maps_.size(); ++i) UpdateMap(i);
  fresh_.assign(streams, false);
  for (Shown& shown : shown_) {
    if (maps_[shown.node].content()) UpdateTiles(&shown);
  }
  Want();
  for (size_t i = 1; i < maps_.size(); ++i) {
    if (!Refresh(i)) return false;
  }
  frames_ += streams;
  return true;
}

void Structure::Begin(const uint8_t* frames, int64_t streams,
                      const ParallelFor& parallel) {
  SetStreams(streams);
  UpdatePixels(frames, parallel);
}

void Structure::Update(int64_t index) {
  Map& map = maps_[index];
  UpdateMap(index);
  map.any_wanted = false;
  WantStale(&map);
  Refresh(index);
}

void Structure::HandOn(int64_t index, const std::vector<uint8_t>& moved) {
  Map& map = maps_[index];
  map.changed.Clear();
  size_t count = 0;
  for (size_t i = 0; i < map.positions.size(); ++i) {
    if (!moved[i]) continue;
    const int32_t at = map.positions[i];
    map.positions[count++] = at;
    map.changed.Set(at / map.width, at % map.width);
  }
  map.positions.resize(count);
  map.any_changed = count > 0;
}

void Structure::End() {
  fresh_.assign(streams(), false);
  frames_ += streams();
}

bool Structure::changed(int64_t index, int64_t stream) const {
  const Map& map = maps_[index];
  if (!map.any_changed) return false;
  const uint64_t* begin = map.changed.line(stream * map.height);
  return std::any_of(begin, begin + map.height * map.changed.words(),
                     [](uint64_t word) { return word != 0; });
}

void Structure::UpdateMap(int64_t index) {
  Map& map = maps_[index];
  const Node& node = graph_.nodes[index];
  if (node.kind == Node::kWeights) return;
  bool any = had_fresh_;
  for (const int32_t i : node.inputs) any |= maps_[i].any_changed;
  // Masks without a mark need not be cleared.
  if (!any && !map.any_changed) return;
  map.changed.Resize(streams() * map.height, map.width);
  map.any_changed = false;
  if (!any) return;
  for (int64_t n = 0; n < streams(); ++n) {
    const int64_t first = n * map.height;
    if (fresh_[n]) {
      // Even where nothing but padding lies under a window.
      SetLines(first, map.height, &map.changed);
      continue;
    }
    for (const int32_t i : node.inputs) {
      const Map& from = maps_[i];
      if (!from.any_changed) continue;
      if (node.windowed()) {
        ChangedPositions(node.window, n, from.changed, &map.changed);
      } else if (!node.whole() && from.pixels() == map.pixels()) {
        map.changed.AddLines(from.changed, first, map.height);
      } else if (changed(i, n)) {
        SetLines(first, map.height, &map.changed);
      }
    }
  }
  map.any_changed = map.changed.Any();
  if (!map.any_changed) return;
  map.stale.Add(map.changed);
  map.any_stale = true;
}

void Structure::UpdateTiles(Shown* shown) {
  Map& map = maps_[shown->node];
  const Tiles& tiles = shown->tiles;
  const FrameShape& frame = graph_.frame;
  const int64_t words = tiles.key_words();
  shown->changed.clear();
  shown->first_new = shown->table == nullptr ? 0 : shown->table->size();
  if (!map.any_changed) return;
  for (int64_t n = 0; n < streams(); ++n) {
    tiles.ForEach(map.changed, n, [&](int64_t tile) {
      shown->changed.push_back(
          {static_cast<int32_t>(n), static_cast<int32_t>(tile), -1});
    });
  }
  const int64_t count = shown->changed.size();
  if (shown->table != nullptr) {
    tile_keys_.resize(Product({count, words}));
    tile_ids_.resize(count);
    int32_t* key = tile_keys_.data();
    for (const TileChange& change : shown->changed) {
      tiles.Key(
          change.tile,
          seen_.data() + change.stream * frame.pixels() * frame.pixel_size(),
          key);
      key += words;
    }
    if (shown->table->Intern(tile_keys_.data(), count, tile_ids_.data())) {
      for (int64_t i = 0; i < count; ++i) shown->changed[i].id = tile_ids_[i];
    } else {
      shown->table->Clear();
    }
  }
}

void Structure::Want() {
  for (Map& map : maps_) map.any_wanted = false;
  for (const Shown& shown : shown_) {
    Map& map = maps_[shown.node];
    if (!map.content()) continue;
    for (const TileChange& change : shown.changed) {
      if (change.id >= 0 && change.id < shown.first_new) continue;
      if (!map.any_wanted) {
        map.wanted.Resize(streams() * map.height, map.width);
        map.any_wanted = true;
      }
      shown.tiles.Mark(change.tile, change.stream, &map.wanted);
    }
  }
  for (int64_t i = maps_.size() - 1; i > 0; --i) {
    Map& map = maps_[i];
    // A row shows what was last computed of it.
    const bool all = !map.content() || graph_.nodes[i].per_frame;
    if (all && map.any_stale) {
      WantStale(&map);
    } else if (map.any_wanted) {
      map.wanted.Intersect(map.stale);
      map.stale.Remove(map.wanted);
      map.any_wanted = map.wanted.Any();
      map.any_stale = map.stale.Any();
    }
    if (map.any_wanted) WantInputs(i);
  }
}

void Structure::WantStale(Map* map) {
  if (!map->any_stale) return;
  map->wanted = map->stale;
  map->stale.Clear();
  map->any_stale = false;
  map->any_wanted = true;
}

void Structure::WantInputs(int64_t index) {
  const Map& map = maps_[index];
  const Node& node = graph_.nodes[index];
  // The tiles of what a node of a whole map looks at are wanted already.
  if (node.whole()) return;
  for (const int32_t i : node.inputs) {
    Map& from = maps_[i];
    // Of others all is wanted anyway.
    if (i == 0 || !from.content() || graph_.nodes[i].per_frame ||
        !from.any_stale) {
      continue;
    }
    if (!from.any_wanted) {
      from.wanted.Resize(streams() * from.height, from.width);
      from.any_wanted = true;
    }
    if (!node.windowed() && from.pixels() == map.pixels()) {
      from.wanted.Add(map.wanted);
      continue;
    }
    for (int64_t n = 0; n < streams(); ++n) {
      if (node.windowed()) {
        CoveredPixels(node.window, n, map.wanted, &from.wanted);
      } else {
        SetLines(n * from.height, from.height, &from.wanted);
      }
    }
  }
}

void Structure::UpdateFrame(const uint8_t* now, uint8_t* seen,
                            const ParallelFor& parallel, int64_t first_line) {
  const FrameShape& frame = graph_.frame;
  PixelMask* changed = &maps_[0].changed;
  const float threshold = graph_.nodes[0].threshold;
  if (threshold > 0 && !frame.bytes) {
    UpdateSeen(reinterpret_cast<const float*>(now),
               reinterpret_cast<float*>(seen), frame.height, frame.width,
               frame.channels, threshold, parallel, changed, first_line);
    return;
  }
  UpdateSeen(now, seen, frame.height, frame.width, frame.pixel_size(),
             threshold, parallel, changed, first_line);
}

bool Structure::UpdatePixels(const uint8_t* frames,
                             const ParallelFor& parallel) {
  Map& map = maps_[0];
  const FrameShape& frame = graph_.frame;
  const int64_t lines = streams() * frame.height;
  const int64_t line_size = frame.width * frame.pixel_size();
  map.changed.Resize(lines, frame.width);
  map.positions.clear();
  for (int64_t n = 0; n < streams(); ++n) {
    const int64_t first = n * frame.height;
    const uint8_t* now = frames + first * line_size;
    uint8_t* seen = seen_.data() + first * line_size;
    if (fresh_[n]) {
      std::memcpy(seen, now, frame.height * line_size);
      SetLines(first, frame.height, &map.changed);
    } else if (std::memcmp(seen, now, frame.height * line_size) != 0) {
      UpdateFrame(now, seen, parallel, first);
    }
  }
  map.changed.Append(0, lines, &map.positions);
  map.any_changed = !map.positions.empty();
  const int64_t count = map.positions.size(), size = frame.pixel_size();
  map.rows = NewRows();
  if (map.content() && frame.is_byte()) {
    for (const int32_t at : map.positions) map.ids[at] = seen_[at];
    // The rows of all values are computed at the first step.
    if (pixels_.size() != kByteValues) {
      pixels_.resize(kByteValues);
      std::iota(pixels_.begin(), pixels_.end(), 0);
    }
    map.rows.raw = pixels_.data();
    map.rows.raw_stride = 1;
    map.rows.count = kByteValues;
    return true;
  }
  // A pixel is a key of whole words.
  const int64_t words = (size + 3) / 4;
  map.patches.assign(Product({count, words}), 0);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(map.patches.data() + i * words,
                seen_.data() + map.positions[i] * size, size);
  }
  map.rows.raw_stride = words * 4;
  if (map.content()) {
    if (!Intern(0)) return false;
  } else {
    map.rows.patches = map.patches.data();
    map.rows.count = count;
    map.rows.ids = map.positions.data();
  }
  map.rows.raw = reinterpret_cast<const uint8_t*>(map.rows.patches);
  return true;
}

bool Structure::Refresh(int64_t index) {
  Map& map = maps_[index];
  const Node& node = graph_.nodes[index];
  map.positions.clear();
  map.rows = NewRows();
  if (!map.any_wanted) return true;
  map.wanted.Append(0, streams() * map.height, &map.positions);
  if (map.content() && node.per_frame) {
    const int64_t pixels = map.pixels();
    for (const int32_t at : map.positions) {
      const int64_t stream = at / pixels;
      map.ids[at] = static_cast<int32_t>((frames_ + stream) * pixels +
                                         (at - stream * pixels));
    }
    return true;
  }
  if (!node.whole()) FindPatches(index);
  if (map.content()) return Intern(index);
  map.rows.patches = map.patches.data();
  map.rows.count = map.positions.size();
  map.rows.ids = map.positions.data();
  return true;
}

void Structure::FindPatches(int64_t index) {
  Map& map = maps_[index];
  const Node& node = graph_.nodes[index];
  const int64_t count = map.positions.size(), taps = node.taps();
  map.patches.resize(Product({count, taps}));
  if (node.windowed()) {
    const Map& from = maps_[node.inputs[0]];
    const int32_t* ids = from.ids.data();
    if (from.content()) {
      PatchIds(
          node.window, map.positions.data(), count,
          [ids](int64_t pixel) { return ids[pixel]; }, map.patches.data());
    } else {
      PatchIds(node.window, map.positions.data(), count, map.patches.data());
    }
    return;
  }
  const int32_t pixels = static_cast<int32_t>(map.pixels());
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int32_t input = node.inputs[tap];
    const Map& from = maps_[input];
    const bool weights = graph_.nodes[input].kind == Node::kWeights;
    const bool one = from.pixels() != pixels;
    const int32_t* ids = from.content() && !weights ? from.ids.data() : nullptr;
    int32_t* to = map.patches.data() + tap;
    for (int64_t i = 0; i < count; ++i, to += taps) {
      int32_t at = map.positions[i];
      if (weights) {
        at = one ? 0 : at % pixels;
      } else if (one) {
        at /= pixels;
      }
      *to = ids == nullptr ? at : ids[at];
    }
  }
}

bool Structure::Intern(int64_t index) {
  Map& map = maps_[index];
  InternTable& table = *map.table;
  const int64_t known = table.size(), taken = table.taken();
  const bool together = bounds_.bytes > 0;
  const int64_t row_bytes = together ? bounds_.row_bytes[index] : 0;
  const int64_t most = together ? taken + (bounds_.bytes - taken_) / row_bytes
                                : bounds_.rows[index];
  new_ids_.resize(map.positions.size());
  const bool fits = table.Intern(map.patches.data(), map.positions.size(),
                                 new_ids_.data(), most);
  taken_ += (table.taken() - taken) * row_bytes;
  if (!fits) {
    full_ = index;
    for (int64_t i = index - 1; i >= 0 && together; --i) {
      const InternTable* other = maps_[i].table.get();
      if (other != nullptr && other->size() > bounds_.parts[i]) full_ = i;
    }
    return false;
  }
  for (size_t i = 0; i < new_ids_.size(); ++i) {
    map.ids[map.positions[i]] = new_ids_[i];
  }
  map.rows.patches = table.key(known);
  map.rows.count = table.size() - known;
  map.rows.first = known;
  return true;
}

}  // namespace reuse_tf
