#include "custom_ops/kernels/structure.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace reuse_tf {
namespace {

// A pixel of one byte is its own id.
constexpr int64_t kByteValues = 256;

// Tiles over more pixels than these words hold are seldom seen twice.
constexpr int64_t kMaxTileWords = 1024;

bool IsByte(const FrameShape& frame) {
  return frame.bytes && frame.channels == 1;
}

}  // namespace

Structure::Structure(const FrameShape& frame,
                     const std::vector<Window>& windows,
                     std::vector<int64_t> max_rows, int64_t max_tiles,
                     uint64_t hash_mask)
    : frame_(frame),
      windows_(windows),
      max_rows_(std::move(max_rows)),
      hash_mask_(hash_mask),
      maps_(windows.size() + 1),
      tiles_(frame, windows),
      max_tiles_(tiles_.key_words() <= kMaxTileWords ? max_tiles : 0) {
  maps_[0].height = frame.height;
  maps_[0].width = frame.width;
  for (size_t i = 0; i < windows.size(); ++i) {
    maps_[i + 1].height = windows[i].out_height;
    maps_[i + 1].width = windows[i].out_width;
  }
  Restart(reuse_);
}

void Structure::Restart(Reuse reuse) {
  reuse_ = reuse;
  fresh_.clear();  // All streams of the next step are new.
  if (reuse == Reuse::kTemporal || max_tiles_ == 0) {
    tile_table_.reset();
  } else if (tile_table_ != nullptr) {
    tile_table_->Clear();
  } else {
    tile_table_ = std::make_unique<InternTable>(tiles_.key_words(), max_tiles_,
                                                hash_mask_);
  }
  for (size_t i = 0; i < maps_.size(); ++i) {
    Map& map = maps_[i];
    if (reuse == Reuse::kTemporal) {
      map.table.reset();
      map.ids = std::vector<int32_t>();
      continue;
    }
    if (map.table != nullptr) {
      map.table->Clear();
    } else if (i > 0) {
      map.table = std::make_unique<InternTable>(windows_[i - 1].taps(),
                                                max_rows_[i], hash_mask_);
    } else if (!IsByte(frame_)) {
      map.table = std::make_unique<InternTable>((frame_.pixel_size() + 3) / 4,
                                                max_rows_[i], hash_mask_);
    }
  }
}

bool Structure::Step(const uint8_t* frames, int64_t streams,
                     const ParallelFor& parallel) {
  if (streams != this->streams()) {
    seen_.resize(Product({streams, frame_.pixels(), frame_.pixel_size()}));
    for (Map& map : maps_) {
      map.stale.Extend(streams * map.height, map.width);
      if (reuse_ == Reuse::kContent) map.ids.resize(streams * map.pixels());
    }
    fresh_.resize(streams, true);
  }
  had_fresh_ = std::find(fresh_.begin(), fresh_.end(), true) != fresh_.end();
  if (!UpdatePixels(frames, parallel)) return false;
  UpdateWindows();
  fresh_.assign(streams, false);
  // Under temporal reuse a row shows what was last computed of it.
  if (reuse_ == Reuse::kTemporal) return Refresh(nullptr);
  UpdateTiles();
  return Refresh(&wanted_);
}

void Structure::UpdateWindows() {
  const bool any = !maps_[0].positions.empty();
  // Pixels are always up to date, but may be what is looked at.
  if (maps_.size() == 1) maps_[0].stale.Add(maps_[0].changed);
  for (size_t i = 1; i < maps_.size(); ++i) {
    Map& map = maps_[i];
    map.changed.Resize(streams() * map.height, map.width);
    for (int64_t n = 0; any && n < streams(); ++n) {
      if (fresh_[n]) {
        // Even where nothing but padding lies under the window.
        for (int64_t y = 0; y < map.height; ++y) {
          map.changed.SetLine(n * map.height + y);
        }
      } else {
        ChangedPositions(windows_[i - 1], n, maps_[i - 1].changed,
                         &map.changed);
      }
    }
    map.stale.Add(map.changed);
  }
}

void Structure::UpdateTiles() {
  const Map& map = maps_.back();
  const int64_t words = tiles_.key_words();
  changed_tiles_.clear();
  for (int64_t n = 0; n < streams(); ++n) {
    tiles_.ForEach(map.changed, n, [&](int64_t tile) {
      changed_tiles_.push_back(
          {static_cast<int32_t>(n), static_cast<int32_t>(tile), -1});
    });
  }
  const int64_t count = changed_tiles_.size();
  first_new_tile_ = 0;
  if (tile_table_ != nullptr) {
    first_new_tile_ = tile_table_->size();
    tile_keys_.resize(Product({count, words}));
    tile_ids_.resize(count);
    int32_t* key = tile_keys_.data();
    for (const TileChange& change : changed_tiles_) {
      tiles_.Key(
          change.tile,
          seen_.data() + change.stream * frame_.pixels() * frame_.pixel_size(),
          key);
      key += words;
    }
    if (tile_table_->Intern(tile_keys_.data(), count, tile_ids_.data())) {
      for (int64_t i = 0; i < count; ++i) changed_tiles_[i].id = tile_ids_[i];
    } else {
      tile_table_->Clear();
    }
  }
  wanted_.Resize(streams() * map.height, map.width);
  for (const TileChange& change : changed_tiles_) {
    if (change.id < 0 || change.id >= first_new_tile_) {
      tiles_.Mark(change.tile, change.stream, &wanted_);
    }
  }
}

bool Structure::Refresh(const PixelMask* wanted) {
  const int64_t last = maps_.size() - 1;
  const int64_t first = std::min<int64_t>(1, last);
  for (int64_t i = last; i >= first; --i) {
    Map& map = maps_[i];
    if (wanted == nullptr) {
      map.wanted = map.stale;
    } else {
      if (i == last) {
        map.wanted = *wanted;
      } else {
        map.wanted.Resize(streams() * map.height, map.width);
        for (int64_t n = 0; n < streams(); ++n) {
          CoveredPixels(windows_[i], n, maps_[i + 1].wanted, &map.wanted);
        }
      }
      map.wanted.Intersect(map.stale);
    }
    map.stale.Remove(map.wanted);
  }
  for (int64_t i = first; i <= last; ++i) {
    Map& map = maps_[i];
    map.positions.clear();
    map.wanted.Append(0, streams() * map.height, &map.positions);
    if (i > 0 && !RefreshWindow(i)) return false;
  }
  return true;
}

bool Structure::UpdatePixels(const uint8_t* frames,
                             const ParallelFor& parallel) {
  Map& map = maps_[0];
  const int64_t lines = streams() * frame_.height;
  const int64_t line_size = frame_.width * frame_.pixel_size();
  map.changed.Resize(lines, frame_.width);
  map.positions.clear();
  for (int64_t n = 0; n < streams(); ++n) {
    const int64_t first = n * frame_.height;
    const uint8_t* now = frames + first * line_size;
    uint8_t* seen = seen_.data() + first * line_size;
    if (fresh_[n]) {
      std::memcpy(seen, now, frame_.height * line_size);
      for (int64_t y = 0; y < frame_.height; ++y) {
        map.changed.SetLine(first + y);
      }
    } else if (std::memcmp(seen, now, frame_.height * line_size) != 0) {
      UpdateSeen(now, seen, frame_.height, frame_.width, frame_.pixel_size(), 0,
                 parallel, &map.changed, first);
    }
  }
  map.changed.Append(0, lines, &map.positions);
  const int64_t count = map.positions.size(), size = frame_.pixel_size();
  map.rows = NewRows();
  if (reuse_ == Reuse::kContent && IsByte(frame_)) {
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
  if (reuse_ == Reuse::kContent) {
    if (!Intern(&map)) return false;
  } else {
    map.rows.patches = map.patches.data();
    map.rows.count = count;
    map.rows.ids = map.positions.data();
  }
  map.rows.raw = reinterpret_cast<const uint8_t*>(map.rows.patches);
  return true;
}

bool Structure::RefreshWindow(int64_t index) {
  Map& map = maps_[index];
  const Map& from = maps_[index - 1];
  const Window& window = windows_[index - 1];
  const int64_t count = map.positions.size();
  map.patches.resize(Product({count, window.taps()}));
  map.rows = NewRows();
  if (reuse_ == Reuse::kTemporal) {
    PatchIds(window, map.positions.data(), count, map.patches.data());
    map.rows.patches = map.patches.data();
    map.rows.count = count;
    map.rows.ids = map.positions.data();
    return true;
  }
  const int32_t* ids = from.ids.data();
  PatchIds(
      window, map.positions.data(), count,
      [ids](int64_t pixel) { return ids[pixel]; }, map.patches.data());
  return Intern(&map);
}

bool Structure::Intern(Map* map) {
  const int64_t known = map->table->size();
  new_ids_.resize(map->positions.size());
  if (!map->table->Intern(map->patches.data(), map->positions.size(),
                          new_ids_.data())) {
    return false;
  }
  for (size_t i = 0; i < new_ids_.size(); ++i) {
    map->ids[map->positions[i]] = new_ids_[i];
  }
  map->rows.patches = map->table->key(known);
  map->rows.count = map->table->size() - known;
  map->rows.first = known;
  return true;
}

}  // namespace reuse_tf
