// The passes of a TopK step over tokens and over latents, for CPUs.
//
// Plain C++17 with OpenMP, called through ctypes: no headers of torch, so it compiles in seconds.
// Matrices are dense, row-major float32. B tokens, D d_model, N latents, K active per token.
// Every result is a function of its inputs alone, whatever the number of threads: one thread owns a
// token or a latent, and sums run in a fixed order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(SAE_PORTABLE)
#include <immintrin.h>
#define SAE_AVX512 1
#endif

namespace {

constexpr int kLanes = 16;
constexpr float kSums = 0x1p-21f;  // a few roundings of float32: adding the bias, and the bounds
constexpr int64_t kChunk = 64;  // latents that one thread takes at a time

float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Round to nearest even, as torch does; NaN stays NaN.
uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value == value ? rounded : 0x7FC0u);
}

// In 64 partial sums: a single vector of them would wait for its own last addition.
float dot(const float* a, const float* b, int64_t d) {
  constexpr int kPartial = 64;
  float partial[kPartial] = {};
  int64_t i = 0;
  for (; i + kPartial <= d; i += kPartial)
#pragma omp simd
    for (int j = 0; j < kPartial; ++j) partial[j] += a[i + j] * b[i + j];
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int j = 0; j < kPartial; ++j) sum += partial[j];
#pragma omp simd reduction(+ : sum)
  for (int64_t rest = i; rest < d; ++rest) sum += a[rest] * b[rest];
  return sum;
}

void add_scaled(float* out, float scale, const float* row, int64_t d) {
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) out[i] += scale * row[i];
}

// Asks for a row that will be read soon: rows are picked by id, which no hardware foresees.
void prefetch(const float* row, int64_t d) {
  for (int64_t i = 0; i < d; i += 16) __builtin_prefetch(row + i, 0, 2);
}

// Two rows at once: half the traffic on `out`.
void add_two_scaled(float* out, float s0, const float* r0, float s1, const float* r1, int64_t d) {
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) out[i] += s0 * r0[i] + s1 * r1[i];
}

// One bf16 copy of a row with the norms that bound what the copy lost.
void shadow_row(const float* row, int64_t d, uint16_t* copy, float* norm, float* error) {
  float squares = 0, lost = 0;
#pragma omp simd reduction(+ : squares, lost)
  for (int64_t i = 0; i < d; ++i) {
    const uint16_t bits = to_bf16(row[i]);
    const float gap = row[i] - from_bf16(bits);
    copy[i] = bits;
    squares += row[i] * row[i];
    lost += gap * gap;
  }
  *norm = std::sqrt(squares);
  *error = std::sqrt(lost);
}

// Bits that compare as unsigned integers the way the values do. NaN is above every number.
uint32_t ordered(float value) {
  uint32_t bits;
  value += 0.0f;  // -0 becomes +0: they are equal
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t flip = (bits & 0x80000000u) ? 0xFFFFFFFFu : 0x80000000u;
  return value == value ? bits ^ flip : 0xFFFFFFFFu;
}

// Sorts as (value, then lower id): a larger key is a better latent.
uint64_t key_of(float value, int32_t id) {
  return (static_cast<uint64_t>(ordered(value)) << 32) | (0xFFFFFFFFu - static_cast<uint32_t>(id));
}

// The k-th largest, bit by bit from the top: counting is done 16 at a time, where partitioning
// would mispredict half of its branches.
uint32_t kth_largest(const uint32_t* keys, int64_t count, int64_t k) {
  uint32_t found = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t tried = found | (1u << bit);
    int32_t above = 0;
#pragma omp simd reduction(+ : above)
    for (int64_t i = 0; i < count; ++i) above += keys[i] >= tried;
    if (above >= k) found = tried;
    if (above == k) break;
  }
  return found;
}

float value_of(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  bits = (bits & 0x80000000u) ? bits ^ 0x80000000u : ~bits;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

int32_t id_of(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key & 0xFFFFFFFFu));
}

}  // namespace

// How far an approximate score may be off. For the product p of token b and latent n by at most
// token[b] * latent[n] + relative * |p|, and where the bias is added by kSums * (|p| + |bias|) more.
struct Slack {
  const float* token;
  const float* latent;
  float relative;
};

// Each token's candidates so far, in a row of `capacity` places.
struct Candidates {
  float* values;       // [B, capacity] scores with the latent bias
  int32_t* ids;        // [B, capacity]
  int32_t* counts;     // [B]; -1: too many to hold, the token is to be redone exactly
  float* thresholds;   // [B] what a score must reach
  int64_t capacity;
  int64_t k;
};

namespace {

struct Row {
  float* values;
  int32_t* ids;
  int32_t count;
  float threshold;
};

struct Scratch {
  std::vector<uint64_t> keys;
  std::vector<uint32_t> bounds;
  std::vector<int32_t> likely, unlikely;
};

// Bound on the error of a score that is the approximate product plus the bias.
float error_of(float score, int32_t id, const float* bias, const Slack& slack, float token_slack) {
  const float size = std::fabs(score) + std::fabs(bias[id]);
  return token_slack * slack.latent[id] + slack.relative * std::fabs(score - bias[id]) +
         kSums * size;
}

// Exactly the k best remain, still in ascending id; a later latent must be strictly better than
// the worst of them.
void keep_best(Row& row, int64_t k, Scratch& scratch) {
  auto& bounds = scratch.bounds;
  bounds.resize(row.count);
  for (int32_t i = 0; i < row.count; ++i) bounds[i] = ordered(row.values[i]);
  const uint32_t least = kth_largest(bounds.data(), row.count, k);
  int64_t equal = k;  // places for those equal to the k-th, lowest ids first
  for (int32_t i = 0; i < row.count; ++i) equal -= bounds[i] > least;
  int32_t kept = 0;
  for (int32_t i = 0; i < row.count; ++i) {
    const bool keep = bounds[i] > least || (bounds[i] == least && equal-- > 0);
    row.values[kept] = row.values[i];
    row.ids[kept] = row.ids[i];
    kept += keep;
  }
  row.count = kept;
  row.threshold = row.values[0];
  for (int32_t i = 1; i < kept; ++i) row.threshold = std::min(row.threshold, row.values[i]);
}

// Whoever may still be among the k best remains: k lower bounds lie above everyone dropped.
void keep_possible(Row& row, int64_t k, const float* bias, const Slack& slack, float token_slack,
                   Scratch& scratch) {
  auto& bounds = scratch.bounds;
  bounds.resize(row.count);
  for (int32_t i = 0; i < row.count; ++i) {
    const float lower =
        row.values[i] - error_of(row.values[i], row.ids[i], bias, slack, token_slack);
    // Infinities give NaN, which would count as the largest: it bounds nothing from below.
    bounds[i] = ordered(lower == lower ? lower : -std::numeric_limits<float>::infinity());
  }
  row.threshold = value_of(static_cast<uint64_t>(kth_largest(bounds.data(), row.count, k)) << 32);
  int32_t kept = 0;
  for (int32_t i = 0; i < row.count; ++i) {
    const float error = error_of(row.values[i], row.ids[i], bias, slack, token_slack);
    const bool keep = !(row.values[i] + error < row.threshold);
    row.values[kept] = row.values[i];
    row.ids[kept] = row.ids[i];
    kept += keep;
  }
  row.count = kept;
}

#ifdef SAE_AVX512
// 16 scores from `at` on, as float32; lanes that are not `inside` are 0.
template <bool kBf16>
__m512 load_scores(const void* scores, int64_t at, __mmask16 inside) {
  if constexpr (!kBf16)
    return _mm512_maskz_loadu_ps(inside, static_cast<const float*>(scores) + at);
  const auto* bits = static_cast<const uint16_t*>(scores) + at;
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(inside, _mm256_maskz_loadu_epi16(inside, bits));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#endif

// Adds those of up to 16 scores that reach the row's threshold, at the end of the row's candidates
// (which has room for 16). Exact scores must be strictly better: latents come in ascending id, so
// an equal one loses the tie. NaN always passes. Returns how many were added.
template <bool kExact, bool kBf16>
int append_block(const void* scores, int64_t first, int width, const float* bias,
                 const Slack& slack, float token_slack, int32_t base_id, float threshold,
                 float* values, int32_t* ids) {
#ifdef SAE_AVX512
  const __mmask16 inside = static_cast<__mmask16>((1u << width) - 1);
  const __m512 raw = load_scores<kBf16>(scores, first, inside);
  const __m512 added = _mm512_maskz_loadu_ps(inside, bias + base_id + first);
  const __m512 score = _mm512_add_ps(raw, added);
  __mmask16 hits;
  if constexpr (kExact) {
    hits = _mm512_mask_cmp_ps_mask(inside, score, _mm512_set1_ps(threshold), _CMP_NLE_UQ);
  } else {
    const __m512 latent = _mm512_maskz_loadu_ps(inside, slack.latent + base_id + first);
    __m512 upper = _mm512_fmadd_ps(_mm512_set1_ps(token_slack), latent, score);
    upper = _mm512_fmadd_ps(_mm512_set1_ps(slack.relative), _mm512_abs_ps(raw), upper);
    const __m512 size = _mm512_add_ps(_mm512_abs_ps(score), _mm512_abs_ps(added));
    upper = _mm512_fmadd_ps(_mm512_set1_ps(kSums), size, upper);
    hits = _mm512_mask_cmp_ps_mask(inside, upper, _mm512_set1_ps(threshold), _CMP_NLT_UQ);
  }
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i id =
      _mm512_add_epi32(lane, _mm512_set1_epi32(base_id + static_cast<int32_t>(first)));
  // Written whether or not there are hits: a branch would be mispredicted too often.
  _mm512_storeu_ps(values, _mm512_maskz_compress_ps(hits, score));
  _mm512_storeu_si512(ids, _mm512_maskz_compress_epi32(hits, id));
  return __builtin_popcount(hits);
#else
  int added = 0;
  for (int i = 0; i < width; ++i) {
    const int64_t at = first + i, id = base_id + at;
    const float raw = kBf16 ? from_bf16(static_cast<const uint16_t*>(scores)[at])
                            : static_cast<const float*>(scores)[at];
    const float score = raw + bias[id];
    if constexpr (kExact) {
      if (score <= threshold) continue;
    } else {
      const float upper = score + token_slack * slack.latent[id] +
                          slack.relative * std::fabs(raw) +
                          kSums * (std::fabs(score) + std::fabs(bias[id]));
      if (upper < threshold) continue;
    }
    values[added] = score;
    ids[added++] = static_cast<int32_t>(id);
  }
  return added;
#endif
}

// A value that at least k of a tile's scores reach, from the largest of each of many groups: the
// first tile would else pass whole. Minus infinity where there are too few groups.
template <bool kExact, bool kBf16>
float first_threshold(const void* scores, int64_t width, const float* bias, const Slack& slack,
                      float token_slack, int32_t base_id, int64_t k, Scratch& scratch) {
  const float none = -std::numeric_limits<float>::infinity();
#ifdef SAE_AVX512
  const int64_t blocks = width / kLanes;
  const int64_t groups = std::min<int64_t>(blocks, (2 * k + kLanes - 1) / kLanes);
  if (groups * kLanes < k + k / 2 || groups == 0) return none;
  auto& best = scratch.bounds;
  best.resize(groups * kLanes);
  alignas(64) float lanes[kLanes];
  for (int64_t group = 0; group < groups; ++group) {
    __m512 largest = _mm512_set1_ps(none);
    for (int64_t block = group; block < blocks; block += groups) {
      const __m512 raw = load_scores<kBf16>(scores, block * kLanes, 0xFFFF);
      const int64_t id = base_id + block * kLanes;
      const __m512 added = _mm512_loadu_ps(bias + id);
      __m512 lower = _mm512_add_ps(raw, added);
      if constexpr (!kExact) {
        const __m512 latent = _mm512_loadu_ps(slack.latent + id);
        const __m512 size = _mm512_add_ps(_mm512_abs_ps(lower), _mm512_abs_ps(added));
        lower = _mm512_fnmadd_ps(_mm512_set1_ps(token_slack), latent, lower);
        lower = _mm512_fnmadd_ps(_mm512_set1_ps(slack.relative), _mm512_abs_ps(raw), lower);
        lower = _mm512_fnmadd_ps(_mm512_set1_ps(kSums), size, lower);
      }
      // A NaN first operand is dropped: max then returns the second.
      largest = _mm512_max_ps(lower, largest);
    }
    _mm512_store_ps(lanes, largest);
    for (int i = 0; i < kLanes; ++i) best[group * kLanes + i] = ordered(lanes[i]);
  }
  const uint32_t reached = kth_largest(best.data(), groups * kLanes, k);
  // Strictly below, since exact scores must be strictly better than the threshold.
  return std::nextafter(value_of(static_cast<uint64_t>(reached) << 32), none);
#else
  (void)scores, (void)width, (void)bias, (void)slack, (void)token_slack, (void)base_id, (void)k;
  (void)scratch;
  return none;
#endif
}

template <bool kExact, bool kBf16>
void filter_row(const void* scores, int64_t width, const float* bias, const Slack& slack,
                float token_slack, int32_t base_id, const Candidates& all, Row& row,
                Scratch& scratch) {
  if (row.count == 0)
    row.threshold = first_threshold<kExact, kBf16>(scores, width, bias, slack, token_slack,
                                                   base_id, all.k, scratch);
  float threshold = row.threshold;
  int32_t count = row.count;
  for (int64_t first = 0; first < width; first += kLanes) {
    const int block = static_cast<int>(std::min<int64_t>(kLanes, width - first));
    count += append_block<kExact, kBf16>(scores, first, block, bias, slack, token_slack, base_id,
                                         threshold, row.values + count, row.ids + count);
    if (count + kLanes <= all.capacity) continue;
    row.count = count;
    if constexpr (kExact)
      keep_best(row, all.k, scratch);
    else
      keep_possible(row, all.k, bias, slack, token_slack, scratch);
    threshold = row.threshold;
    count = row.count;
    if (count + kLanes > all.capacity) {
      row.count = -1;
      return;
    }
  }
  row.count = count;
}

template <bool kExact, bool kBf16>
void filter_tile(const void* tile, int64_t tokens, int64_t width, int64_t stride, const float* bias,
                 int32_t base_id, const Slack& slack, const Candidates& all, int threads) {
  const int64_t bytes = kBf16 ? 2 : 4;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < tokens; ++b) {
      Row row{all.values + b * all.capacity, all.ids + b * all.capacity, all.counts[b],
              all.thresholds[b]};
      if (row.count < 0) continue;
      const char* scores = static_cast<const char*>(tile) + b * stride * bytes;
      const float token_slack = kExact ? 0.0f : slack.token[b];
      filter_row<kExact, kBf16>(scores, width, bias, slack, token_slack, base_id, all, row, scratch);
      all.counts[b] = row.count;
      all.thresholds[b] = row.threshold;
    }
  }
}

// Fewer than k candidates can only be left by scores of minus infinity: the lowest ids not there.
void pad_to_k(std::vector<uint64_t>& keys, int64_t k) {
  std::vector<int32_t> ids;
  for (uint64_t key : keys) ids.push_back(id_of(key));
  std::sort(ids.begin(), ids.end());
  for (int32_t id = 0; static_cast<int64_t>(keys.size()) < k; ++id)
    if (!std::binary_search(ids.begin(), ids.end(), id))
      keys.push_back(key_of(-std::numeric_limits<float>::infinity(), id));
}

void write_sorted(std::vector<uint64_t>& keys, int64_t k, float* values, int64_t* ids) {
  if (static_cast<int64_t>(keys.size()) < k) pad_to_k(keys, k);
  if (static_cast<int64_t>(keys.size()) > k)
    std::nth_element(keys.begin(), keys.begin() + k, keys.end(), std::greater<uint64_t>());
  std::sort(keys.begin(), keys.begin() + k, std::greater<uint64_t>());
  for (int64_t i = 0; i < k; ++i) {
    values[i] = value_of(keys[i]);
    ids[i] = id_of(keys[i]);
  }
}

// The exact scores, as keys, of those candidates whose place in `chosen` is true.
void rescore(const float* x, const float* w_enc, int64_t d, const float* bias, const Row& row,
             const std::vector<int32_t>& chosen, std::vector<uint64_t>& keys) {
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (i + 2 < chosen.size()) prefetch(w_enc + row.ids[chosen[i + 2]] * d, d);
    const int32_t id = row.ids[chosen[i]];
    keys.push_back(key_of(dot(x, w_enc + id * d, d) + bias[id], id));
  }
}

// Exact scores of all candidates that can be among the k best: first the k best by their
// approximate scores, then those that may still beat the worst of these.
void rescore_possible(const float* x, const float* w_enc, int64_t d, const float* bias,
                      const Slack& slack, float token_slack, const Row& row, int64_t k,
                      Scratch& scratch) {
  auto& [keys, bounds, likely, unlikely] = scratch;
  keys.clear(), likely.clear(), unlikely.clear(), bounds.resize(row.count);
  for (int32_t i = 0; i < row.count; ++i) bounds[i] = ordered(row.values[i]);
  const uint32_t least = row.count > k ? kth_largest(bounds.data(), row.count, k) : 0;
  for (int32_t i = 0; i < row.count; ++i) (bounds[i] >= least ? likely : unlikely).push_back(i);
  rescore(x, w_enc, d, bias, row, likely, keys);
  if (unlikely.empty()) return;
  const float worst = value_of(*std::min_element(keys.begin(), keys.end()));
  size_t kept = 0;
  for (int32_t i : unlikely) {
    const float error = error_of(row.values[i], row.ids[i], bias, slack, token_slack);
    if (!(row.values[i] + error < worst)) unlikely[kept++] = i;
  }
  unlikely.resize(kept);
  rescore(x, w_enc, d, bias, row, unlikely, keys);
}

}  // namespace

// Gradient sums of one latent and what is updated from them.
struct MatrixRows {
  float* weight;
  float* exp_avg;
  float* exp_avg_sq;
  float* average;  // may be null
};

struct Adam {
  float step_size;          // lr / (1 - beta1^t)
  float keep2, grow1, grow2;  // beta2, 1 - beta1, 1 - beta2: subtracted in float64
  float eps;
  float root_correction;    // sqrt(1 - beta2^t)
  float ema_weight;         // 1 - decay
  float grad_factor;
};

struct Sums {
  const int64_t* starts;    // [N + 1] into `pairs`
  const int32_t* pairs;     // pair = token * K + slot, grouped by latent, tokens ascending
  const float* values;      // [B * K]
  const float* grad_values; // [B * K]
  const float* centered;    // [B, D]
  const float* residual;    // [B, D]
  int64_t k;
  float residual_scale;
  const int32_t* extra_of;  // [N] row of the further gradients, -1 = none; may be null
  const float* extra_enc;
  const float* extra_dec;
  const float* extra_bias;
};

namespace {

void adam_row(const Adam& adam, const MatrixRows& rows, int64_t at, const float* grad, int64_t d) {
  float *w = rows.weight + at, *m = rows.exp_avg + at, *v = rows.exp_avg_sq + at;
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) {
    const float g = adam.grad_factor * grad[i];
    m[i] += adam.grow1 * (g - m[i]);
    v[i] = adam.keep2 * v[i] + adam.grow2 * g * g;
    w[i] -= adam.step_size * m[i] / (std::sqrt(v[i]) / adam.root_correction + adam.eps);
  }
}

void average_row(const Adam& adam, const MatrixRows& rows, int64_t at, int64_t d) {
  if (!rows.average) return;
  float *w = rows.weight + at, *average = rows.average + at;
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) average[i] += adam.ema_weight * (w[i] - average[i]);
}

// A latent's gradient rows, summed over its pairs; returns the bias's.
float sum_gradients(const Sums& sums, int64_t latent, int64_t d, float* enc, float* dec) {
  std::memset(enc, 0, d * sizeof(float));
  std::memset(dec, 0, d * sizeof(float));
  float bias = 0;
  const int64_t end = sums.starts[latent + 1];
  int64_t at = sums.starts[latent];
  for (; at + 1 < end; at += 2) {
    const int64_t p0 = sums.pairs[at], p1 = sums.pairs[at + 1];
    const int64_t t0 = p0 / sums.k * d, t1 = p1 / sums.k * d;
    for (int64_t next = at + 2; next < std::min(at + 4, end); ++next) {
      prefetch(sums.centered + sums.pairs[next] / sums.k * d, d);
      prefetch(sums.residual + sums.pairs[next] / sums.k * d, d);
    }
    const float g0 = sums.grad_values[p0], g1 = sums.grad_values[p1];
    add_two_scaled(enc, g0, sums.centered + t0, g1, sums.centered + t1, d);
    add_two_scaled(dec, sums.residual_scale * sums.values[p0], sums.residual + t0,
                   sums.residual_scale * sums.values[p1], sums.residual + t1, d);
    bias += g0 + g1;
  }
  if (at < end) {
    const int64_t pair = sums.pairs[at], token = pair / sums.k * d;
    add_scaled(enc, sums.grad_values[pair], sums.centered + token, d);
    add_scaled(dec, sums.residual_scale * sums.values[pair], sums.residual + token, d);
    bias += sums.grad_values[pair];
  }
  const int32_t extra = sums.extra_of ? sums.extra_of[latent] : -1;
  if (extra >= 0) {
    add_scaled(enc, 1.0f, sums.extra_enc + extra * d, d);
    add_scaled(dec, 1.0f, sums.extra_dec + extra * d, d);
    bias += sums.extra_bias[extra];
  }
  return bias;
}

void to_unit_norm(float* row, int64_t d) {
  const float norm = std::sqrt(dot(row, row, d));
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) row[i] /= norm;
}

}  // namespace

// What one latent's visit needs beside its rows.
struct Visit {
  const Sums* sums;
  const MatrixRows *enc, *dec, *bias;
  const Adam* adam;  // null: only measure
  uint16_t* copy;    // bf16 encoder rows with norms and errors; null = not kept
  float *norms, *errors;
  double* squares;
};

namespace {

void visit_latent(const Visit& visit, int64_t n, int64_t d, float* grad_enc, float* grad_dec,
                  float* bias_row) {
  const MatrixRows &enc = *visit.enc, &dec = *visit.dec;
  const float grad_bias = sum_gradients(*visit.sums, n, d, grad_enc, grad_dec);
  const int64_t at = n * d;
  add_scaled(grad_dec, -dot(grad_dec, dec.weight + at, d), dec.weight + at, d);
  visit.squares[n] = static_cast<double>(dot(grad_enc, grad_enc, d)) +
                     dot(grad_dec, grad_dec, d) + static_cast<double>(grad_bias) * grad_bias;
  if (grad_bias != 0) add_scaled(bias_row, grad_bias, enc.weight + at, d);
  if (!visit.adam) return;
  adam_row(*visit.adam, enc, at, grad_enc, d);
  average_row(*visit.adam, enc, at, d);
  adam_row(*visit.adam, dec, at, grad_dec, d);
  to_unit_norm(dec.weight + at, d);
  average_row(*visit.adam, dec, at, d);
  adam_row(*visit.adam, *visit.bias, n, &grad_bias, 1);
  average_row(*visit.adam, *visit.bias, n, 1);
  if (visit.copy)
    shadow_row(enc.weight + at, d, visit.copy + at, visit.norms + n, visit.errors + n);
}

}  // namespace

extern "C" {

// bf16 copies of rows, with their norms and the norms of what the copies lost.
void sae_shadow(const float* rows, int64_t n, int64_t d, uint16_t* copy, float* norms,
                float* errors, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) shadow_row(rows + i * d, d, copy + i * d, norms + i, errors + i);
}

// Compares one tile of scores [tokens, width] (row stride in elements) with the thresholds.
void sae_filter_tile(const void* tile, int is_bf16, int64_t tokens, int64_t width, int64_t stride,
                     const float* bias, int64_t base_id, const Slack* slack, const Candidates* all,
                     int threads) {
  const auto base = static_cast<int32_t>(base_id);
  if (!slack->token)
    filter_tile<true, false>(tile, tokens, width, stride, bias, base, *slack, *all, threads);
  else if (is_bf16)
    filter_tile<false, true>(tile, tokens, width, stride, bias, base, *slack, *all, threads);
  else
    filter_tile<false, false>(tile, tokens, width, stride, bias, base, *slack, *all, threads);
}

// The k best of the candidates with exact scores, sorted.
void sae_finish_exact(const Candidates* all, int64_t tokens, float* values, int64_t* ids,
                      int threads) {
  const int64_t k = all->k;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < tokens; ++b) {
      const float* row_values = all->values + b * all->capacity;
      const int32_t* row_ids = all->ids + b * all->capacity;
      scratch.keys.resize(all->counts[b]);
      for (int32_t i = 0; i < all->counts[b]; ++i)
        scratch.keys[i] = key_of(row_values[i], row_ids[i]);
      write_sorted(scratch.keys, k, values + b * k, ids + b * k);
    }
  }
}

// The k best of the candidates after computing in float32 every score that could be among them.
// Returns how many scores that took.
int64_t sae_finish_rescored(const Candidates* all, const float* centered, const float* w_enc,
                            int64_t tokens, int64_t d, const float* bias, const Slack* slack,
                            float* values, int64_t* ids, int threads) {
  const int64_t k = all->k;
  int64_t scored = 0;
#pragma omp parallel num_threads(threads) reduction(+ : scored)
  {
    Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < tokens; ++b) {
      Row row{all->values + b * all->capacity, all->ids + b * all->capacity, all->counts[b], 0};
      if (row.count < 0) continue;
      if (row.count > k) keep_possible(row, k, bias, *slack, slack->token[b], scratch);
      rescore_possible(centered + b * d, w_enc, d, bias, *slack, slack->token[b], row, k, scratch);
      scored += static_cast<int64_t>(scratch.keys.size());
      write_sorted(scratch.keys, k, values + b * k, ids + b * k);
    }
  }
  return scored;
}

// Sets to 0 all but each row's k largest scores, and of these the negative ones: a dense code.
void sae_keep_topk(float* scores, int64_t tokens, int64_t n, int64_t k, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint32_t> bounds(n);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < tokens; ++b) {
      float* row = scores + b * n;
      for (int64_t i = 0; i < n; ++i) bounds[i] = ordered(row[i]);
      const uint32_t least = k < n ? kth_largest(bounds.data(), n, k) : 0;
      int64_t above = 0, reaching = 0;
#pragma omp simd reduction(+ : above, reaching)
      for (int64_t i = 0; i < n; ++i) {
        above += bounds[i] > least;
        reaching += bounds[i] >= least;
      }
      if (reaching > k) {  // equal to the k-th: the lowest ids first
        int64_t places = k - above;
        for (int64_t i = 0; i < n; ++i)
          if (bounds[i] == least && places-- <= 0) row[i] = 0;
      }
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) row[i] = bounds[i] < least || row[i] <= 0 ? 0.0f : row[i];
    }
  }
}

// Decode, residual x - xhat, and residual_scale * <residual, row> for each active latent.
void sae_token_pass(const float* centered, const int64_t* ids, const float* values,
                    const float* w_dec, int64_t tokens, int64_t k, int64_t d, float residual_scale,
                    float* residual, float* grad_values, double* squares, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t b = 0; b < tokens; ++b) {
    float* error = residual + b * d;
    std::memcpy(error, centered + b * d, d * sizeof(float));
    const int64_t* row_ids = ids + b * k;
    const float* row_values = values + b * k;
    int64_t j = 0;
    for (; j + 1 < k; j += 2) {
      if (j + 3 < k) {
        prefetch(w_dec + row_ids[j + 2] * d, d);
        prefetch(w_dec + row_ids[j + 3] * d, d);
      }
      add_two_scaled(error, -row_values[j], w_dec + row_ids[j] * d, -row_values[j + 1],
                     w_dec + row_ids[j + 1] * d, d);
    }
    if (j < k) add_scaled(error, -row_values[j], w_dec + row_ids[j] * d, d);
    for (j = 0; j < k; ++j)
      grad_values[b * k + j] =
          row_values[j] > 0 ? residual_scale * dot(error, w_dec + row_ids[j] * d, d) : 0.0f;
    squares[b] = dot(error, error, d);
  }
}

// Groups the pairs of positive value by latent (a counting sort, stable).
void sae_group_pairs(const int64_t* ids, const float* values, int64_t n_pairs, int64_t n_latents,
                     int64_t* starts, int32_t* pairs) {
  std::memset(starts, 0, (n_latents + 1) * sizeof(int64_t));
  for (int64_t p = 0; p < n_pairs; ++p) starts[ids[p] + 1] += values[p] > 0;
  for (int64_t n = 0; n < n_latents; ++n) starts[n + 1] += starts[n];
  std::vector<int64_t> next(starts, starts + n_latents);
  for (int64_t p = 0; p < n_pairs; ++p)
    if (values[p] > 0) pairs[next[ids[p]]++] = static_cast<int32_t>(p);
}

// One pass over the latents: gradients, projection and, unless adam is null, the whole update.
// squares[n]: the latent's share of the squared gradient norm. bias_rows[c]: the sum over the
// c-th kChunk latents of bias gradient times encoder row (before the update), for b_pre's gradient.
void sae_update_latents(const Sums* sums, const MatrixRows* enc, const MatrixRows* dec,
                        const MatrixRows* bias, const Adam* adam, int64_t n_latents, int64_t d,
                        uint16_t* copy, float* norms, float* errors, double* squares,
                        float* bias_rows, int threads) {
  const Visit visit{sums, enc, dec, bias, adam, copy, norms, errors, squares};
  const int64_t n_chunks = (n_latents + kChunk - 1) / kChunk;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> grads(2 * d);
#pragma omp for schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
      float* bias_row = bias_rows + chunk * d;
      std::memset(bias_row, 0, d * sizeof(float));
      const int64_t end = std::min(n_latents, (chunk + 1) * kChunk);
      for (int64_t n = chunk * kChunk; n < end; ++n)
        visit_latent(visit, n, d, grads.data(), grads.data() + d, bias_row);
    }
  }
}

}  // extern "C"
