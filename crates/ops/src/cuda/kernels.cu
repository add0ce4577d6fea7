// The kernels of our own, compiled at run time by NVRTC. They are written in the common part of C and CUDA,
// without shared memory and with one result or one pack of results a thread, so that a C compiler takes
// them as well: that is how they are tested on machines without a GPU.
//
// Compiled once for every type of activations and width of packs:
//   BF16  activations are bfloat16; otherwise float
//   PACK  activations that a thread loads and stores at once, where the innermost dimension is a multiple
//         of it: 16 bytes, or 1
//
// Activations are [batch, height, width, channels]. Counts are below 2^31: the callers check it.

#ifdef __CUDACC__
#define KERNEL(name) extern "C" __global__ void name
#define DEVICE static __device__ __forceinline__
#define ALIGNED(bytes) __align__(bytes)
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)
#define AS_FLOAT(bits) __uint_as_float(bits)
#define AS_BITS(value) __float_as_uint(value)
#endif

#ifdef BF16
typedef unsigned short act;

DEVICE float widen(act x) {
  return AS_FLOAT((unsigned)x << 16);
}

// To the nearest, ties to even; a NaN stays one.
DEVICE act narrow(float x) {
  unsigned bits = AS_BITS(x);
  if (x != x) return (act)(bits >> 16 | 64u);
  return (act)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
#else
typedef float act;

DEVICE float widen(act x) { return x; }
DEVICE act narrow(float x) { return x; }
#endif

typedef struct ALIGNED(PACK * sizeof(act)) { act at[PACK]; } pack;
typedef struct ALIGNED(4 * sizeof(act)) { act at[4]; } quad;
// For each element of a pack, the index of the maximum in its window.
typedef struct ALIGNED(PACK) { unsigned char at[PACK]; } argmax_pack;

DEVICE pack load(const act *from, unsigned number) { return ((const pack *)from)[number]; }
DEVICE void store(act *to, unsigned number, pack value) { ((pack *)to)[number] = value; }

// What changes from one training step to the next. A kernel that is replayed in a CUDA graph reads it from memory; elsewhere its
// pointer is null, and the kernel's own argument counts.
typedef struct {
  // Counted over all epochs.
  unsigned step;
  float learning_rate;
  unsigned long long step_in_epoch;
} step_values;

KERNEL(set_step_values)(step_values *values, unsigned step, float learning_rate,
                        unsigned long long step_in_epoch) {
  if (INDEX) return;
  values->step = step;
  values->learning_rate = learning_rate;
  values->step_in_epoch = step_in_epoch;
}

// A NaN stays one, so that the loss shows it.
DEVICE float activated(float x, int relu) { return relu && x < 0.0f ? 0.0f : x; }

// ---- Images ----

// A batch [batch, height, width, channels], cropped, flipped, with cutout and normalised, from `images`
// [count, channels, height, width] of bytes. For each image of the batch, `chosen` has
//   its index in `images`;
//   bits 0 to 7: 128 + the row of the original that the first row shows, bits 8 to 15: 128 + the column that the
//   first column shows, bit 16: whether it is flipped, bit 17: whether the padding reflects the image or is black;
//   top, left, bottom and right of the cutout, 8 bits each, whose values are 0.
// `table` [channels, 256] has the normalised value of each byte.
#define REFLECTED(at, size) ((at) < 0 ? -(at) : (at) >= (size) ? 2 * (size) - 2 - (at) : (at))

KERNEL(views)(const unsigned char *images, const unsigned *chosen, const float *table, act *y,
              unsigned packs, unsigned channels, unsigned height, unsigned width) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned first = i * PACK % (width * channels), line = i * PACK / (width * channels);
  unsigned row = line % height, image = line / height;
  unsigned view = chosen[3 * image + 1], cutout = chosen[3 * image + 2];
  int reflect = (int)(view >> 17 & 1u);
  int from_row = (int)row + (int)(view & 255u) - 128;
  int left = (int)(view >> 8 & 255u) - 128;
  int flipped = (int)(view >> 16 & 1u);
  if (reflect) from_row = REFLECTED(from_row, (int)height);
  int inside = from_row >= 0 && from_row < (int)height;
  int row_is_cut = row >= (cutout & 255u) && row < (cutout >> 16 & 255u);
  const unsigned char *original = images + (size_t)chosen[3 * image] * channels * height * width;
  pack out;
  for (unsigned n = 0; n < PACK; ++n) {
    unsigned channel = (first + n) % channels, column = (first + n) / channels;
    int x = (int)(flipped ? width - 1 - column : column) + left;
    if (reflect) x = REFLECTED(x, (int)width);
    unsigned byte = 0;
    if (inside && x >= 0 && x < (int)width) byte = original[(channel * height + from_row) * width + x];
    int cut = row_is_cut && column >= (cutout >> 8 & 255u) && column < cutout >> 24;
    out.at[n] = narrow(cut ? 0.0f : table[channel * 256 + byte]);
  }
  store(y, i, out);
}

// Each image's matrix of `rows` by `columns`, transposed. One element a thread, in the order of the result.
KERNEL(transpose)(const act *x, act *y, unsigned count, unsigned rows, unsigned columns) {
  unsigned i = INDEX;
  if (i >= count) return;
  unsigned row = i % rows, column = i / rows % columns, image = i / rows / columns;
  y[i] = x[(image * rows + row) * columns + column];
}

// Pixels of `from` channels as pixels of `to` channels: the last ones are dropped, or channels of zeros are added.
KERNEL(resize_channels)(const act *x, act *y, unsigned count, unsigned from, unsigned to) {
  unsigned i = INDEX;
  if (i >= count) return;
  unsigned channel = i % to, pixel = i / to;
  y[i] = channel < from ? x[pixel * from + channel] : narrow(0.0f);
}

KERNEL(narrow_all)(const float *x, act *y, unsigned packs) {
  unsigned i = INDEX;
  if (i >= packs) return;
  pack out;
  for (unsigned n = 0; n < PACK; ++n) out.at[n] = narrow(x[i * PACK + n]);
  store(y, i, out);
}

// ---- Weights ----

// From [outs, in, taps] of float to [.., taps, padded], with zeros for the inputs and outputs that lack.
KERNEL(arrange_weight)(const float *weight, act *arranged, unsigned count, unsigned outs, unsigned in,
                       unsigned taps, unsigned padded) {
  unsigned i = INDEX;
  if (i >= count) return;
  unsigned channel = i % padded, tap = i / padded % taps, out = i / padded / taps;
  arranged[i] = narrow(channel < in && out < outs ? weight[(out * in + channel) * taps + tap] : 0.0f);
}

// The way back, for the gradient: [.., in, taps].
KERNEL(arrange_gradient)(const act *arranged, act *gradient, unsigned count, unsigned in, unsigned taps,
                         unsigned padded) {
  unsigned i = INDEX;
  if (i >= count) return;
  unsigned tap = i % taps, channel = i / taps % in, out = i / taps / in;
  gradient[i] = arranged[(out * taps + tap) * padded + channel];
}

// ---- Convolutions as products ----

// The patches of images: [batch, rows, columns, size, size, channels] of the images [batch, height, width, channels] with
// `padding` zeros on each side. Coordinates outside of an image wrap around to large ones.
KERNEL(im2col)(const act *x, act *patches, unsigned packs, unsigned channels, unsigned height, unsigned width,
               unsigned rows, unsigned columns, unsigned size, unsigned padding) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned lanes = channels / PACK;
  unsigned lane = i % lanes, tap = i / lanes % (size * size), position = i / lanes / (size * size);
  unsigned row = position / columns % rows + tap / size - padding, column = position % columns + tap % size - padding;
  unsigned image = position / columns / rows;
  pack value;
  for (unsigned n = 0; n < PACK; ++n) value.at[n] = narrow(0.0f);
  if (row < height && column < width) value = load(x, ((image * height + row) * width + column) * lanes + lane);
  store(patches, i, value);
}

// The gradient of the images from that of their patches: each pixel adds up its places in patches, tap by tap.
KERNEL(col2im)(const float *patches, act *x, unsigned packs, unsigned channels, unsigned height, unsigned width,
               unsigned rows, unsigned columns, unsigned size, unsigned padding) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned lanes = channels / PACK;
  unsigned lane = i % lanes, pixel = i / lanes;
  unsigned column = pixel % width, row = pixel / width % height, image = pixel / width / height;
  float sum[PACK];
  for (unsigned n = 0; n < PACK; ++n) sum[n] = 0.0f;
  for (unsigned tap = 0; tap < size * size; ++tap) {
    unsigned r = row + padding - tap / size, c = column + padding - tap % size;
    if (r >= rows || c >= columns) continue;
    unsigned patch = (image * rows + r) * columns + c;
    const float *from = patches + (patch * size * size + tap) * channels + lane * PACK;
    for (unsigned n = 0; n < PACK; ++n) sum[n] += from[n];
  }
  pack out;
  for (unsigned n = 0; n < PACK; ++n) out.at[n] = narrow(sum[n]);
  store(x, i, out);
}

// ---- Bias, activation, pooling ----

// activation(x + bias); without `bias`, activation(x). `x` and `y` may be the same.
KERNEL(activate)(const act *x, const float *bias, act *y, unsigned packs, unsigned channels, int relu) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned channel = i * PACK % channels;
  pack value = load(x, i);
  for (unsigned n = 0; n < PACK; ++n)
    value.at[n] = narrow(activated(widen(value.at[n]) + (bias ? bias[channel + n] : 0.0f), relu));
  store(y, i, value);
}

// activation(x + bias) of the last layer, in float whatever the activations are.
KERNEL(add_bias_wide)(float *y, const float *bias, unsigned count, unsigned channels) {
  unsigned i = INDEX;
  if (i < count) y[i] += bias[i % channels];
}

// The gradient with respect to the input of ReLU, from its result `y` and the gradient of that.
// Written so that the gradient of a NaN is kept.
KERNEL(relu_gradient)(const act *y, const act *gradient, act *out, unsigned packs) {
  unsigned i = INDEX;
  if (i >= packs) return;
  pack value = load(gradient, i), result = load(y, i);
  for (unsigned n = 0; n < PACK; ++n)
    if (widen(result.at[n]) <= 0.0f) value.at[n] = narrow(0.0f);
  store(out, i, value);
}

// The maxima over windows of `size` by `size`, `stride` apart, then bias and activation, which keep the order
// of numbers; and the place of each maximum in its window, counted row by row. Of equal values the
// first is the maximum, and a NaN is larger than any number.
KERNEL(pool)(const act *x, const float *bias, act *y, argmax_pack *argmax, unsigned packs, unsigned channels,
             unsigned height, unsigned width, unsigned rows, unsigned columns, unsigned size, unsigned stride,
             int relu) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned lanes = channels / PACK;
  unsigned lane = i % lanes, window = i / lanes;
  unsigned left = window % columns * stride, top = window / columns % rows * stride;
  unsigned image = window / columns / rows;
  float best[PACK];
  argmax_pack place;
  for (unsigned n = 0; n < PACK; ++n) best[n] = 0.0f, place.at[n] = 0;
  for (unsigned at = 0; at < size * size; ++at) {
    unsigned pixel = (image * height + top + at / size) * width + left + at % size;
    pack value = load(x, pixel * lanes + lane);
    for (unsigned n = 0; n < PACK; ++n) {
      float v = widen(value.at[n]);
      if (at == 0 || v > best[n] || v != v) {
        best[n] = v;
        place.at[n] = (unsigned char)at;
      }
    }
  }
  pack out;
  for (unsigned n = 0; n < PACK; ++n)
    out.at[n] = narrow(activated(best[n] + (bias ? bias[lane * PACK + n] : 0.0f), relu));
  argmax[i] = place;
  store(y, i, out);
}

// The gradient of `pool` with respect to `x`: each place gathers from the windows whose maximum it was. `y`
// is the result of ReLU, which zeroes gradients, and null without ReLU.
KERNEL(pool_gradient)(const act *gradient, const act *y, const argmax_pack *argmax, act *out, unsigned packs,
                      unsigned channels, unsigned height, unsigned width, unsigned rows, unsigned columns,
                      unsigned size, unsigned stride) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned lanes = channels / PACK;
  unsigned lane = i % lanes, pixel = i / lanes;
  unsigned column = pixel % width, row = pixel / width % height, image = pixel / width / height;
  unsigned first_row = row + 1 > size ? (row + 1 - size + stride - 1) / stride : 0;
  unsigned first_column = column + 1 > size ? (column + 1 - size + stride - 1) / stride : 0;
  float sum[PACK];
  for (unsigned n = 0; n < PACK; ++n) sum[n] = 0.0f;
  for (unsigned r = first_row; r < rows && r * stride <= row; ++r)
    for (unsigned c = first_column; c < columns && c * stride <= column; ++c) {
      unsigned here = (row - r * stride) * size + column - c * stride;
      unsigned window = ((image * rows + r) * columns + c) * lanes + lane;
      argmax_pack place = argmax[window];
      pack value = load(gradient, window), output = value;
      if (y) output = load(y, window);
      for (unsigned n = 0; n < PACK; ++n) {
        int cut = y && widen(output.at[n]) <= 0.0f;
        if (!cut && place.at[n] == here) sum[n] += widen(value.at[n]);
      }
    }
  pack result;
  for (unsigned n = 0; n < PACK; ++n) result.at[n] = narrow(sum[n]);
  store(out, i, result);
}

// The averages over windows of `size` by `size`, `stride` apart.
KERNEL(avg_pool)(const act *x, act *y, unsigned packs, unsigned channels, unsigned height, unsigned width,
                 unsigned rows, unsigned columns, unsigned size, unsigned stride) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned lanes = channels / PACK;
  unsigned lane = i % lanes, window = i / lanes;
  unsigned left = window % columns * stride, top = window / columns % rows * stride;
  unsigned image = window / columns / rows;
  float sum[PACK];
  for (unsigned n = 0; n < PACK; ++n) sum[n] = 0.0f;
  for (unsigned at = 0; at < size * size; ++at) {
    unsigned pixel = (image * height + top + at / size) * width + left + at % size;
    pack value = load(x, pixel * lanes + lane);
    for (unsigned n = 0; n < PACK; ++n) sum[n] += widen(value.at[n]);
  }
  pack out;
  for (unsigned n = 0; n < PACK; ++n) out.at[n] = narrow(sum[n] / (float)(size * size));
  store(y, i, out);
}

// The gradient of `avg_pool` with respect to `x`: each pixel sums up the windows that contain it.
KERNEL(avg_pool_gradient)(const act *gradient, act *out, unsigned packs, unsigned channels, unsigned height,
                          unsigned width, unsigned rows, unsigned columns, unsigned size, unsigned stride) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned lanes = channels / PACK;
  unsigned lane = i % lanes, pixel = i / lanes;
  unsigned column = pixel % width, row = pixel / width % height, image = pixel / width / height;
  unsigned first_row = row + 1 > size ? (row + 1 - size + stride - 1) / stride : 0;
  unsigned first_column = column + 1 > size ? (column + 1 - size + stride - 1) / stride : 0;
  float sum[PACK];
  for (unsigned n = 0; n < PACK; ++n) sum[n] = 0.0f;
  for (unsigned r = first_row; r < rows && r * stride <= row; ++r)
    for (unsigned c = first_column; c < columns && c * stride <= column; ++c) {
      pack value = load(gradient, ((image * rows + r) * columns + c) * lanes + lane);
      for (unsigned n = 0; n < PACK; ++n) sum[n] += widen(value.at[n]);
    }
  pack result;
  for (unsigned n = 0; n < PACK; ++n) result.at[n] = narrow(sum[n] / (float)(size * size));
  store(out, i, result);
}

// Rows or elements that one thread adds up.
#define GROUP 64

// The sums of every GROUP rows of [rows, channels], in their order: [rows / GROUP rounded up, channels].
KERNEL(sum_rows)(const act *x, float *sums, unsigned packs, unsigned rows, unsigned channels) {
  unsigned i = INDEX;
  if (i >= packs) return;
  unsigned lanes = channels / PACK;
  unsigned lane = i % lanes, first = i / lanes * GROUP;
  unsigned last = first + GROUP < rows ? first + GROUP : rows;
  float sum[PACK];
  for (unsigned n = 0; n < PACK; ++n) sum[n] = 0.0f;
  for (unsigned row = first; row < last; ++row) {
    pack value = load(x, row * lanes + lane);
    for (unsigned n = 0; n < PACK; ++n) sum[n] += widen(value.at[n]);
  }
  for (unsigned n = 0; n < PACK; ++n) sums[i * PACK + n] = sum[n];
}

// The same for sums of sums.
KERNEL(sum_sums)(const float *x, float *sums, unsigned count, unsigned rows, unsigned channels) {
  unsigned i = INDEX;
  if (i >= count) return;
  unsigned channel = i % channels, first = i / channels * GROUP;
  unsigned last = first + GROUP < rows ? first + GROUP : rows;
  float sum = 0.0f;
  for (unsigned row = first; row < last; ++row) sum += x[row * channels + channel];
  sums[i] = sum;
}

// ---- Dropout ----

// Philox4x32-10 of J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC '11), as in the
// crate `random`.
DEVICE void philox(unsigned counter[4], unsigned key0, unsigned key1) {
  for (int round = 0; round < 10; ++round) {
    unsigned long long a = (unsigned long long)counter[0] * 0xD2511F53u;
    unsigned long long b = (unsigned long long)counter[2] * 0xCD9E8D57u;
    counter[0] = (unsigned)(b >> 32) ^ counter[1] ^ key0;
    counter[1] = (unsigned)b;
    counter[2] = (unsigned)(a >> 32) ^ counter[3] ^ key1;
    counter[3] = (unsigned)a;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Sets to 0 what the mask says and multiplies the rest by `scale`: element i is kept where word i % 4 of
// random block i / 4 is at least `probability`. Four elements a thread.
KERNEL(dropout)(const act *x, act *y, unsigned count, unsigned key0, unsigned key1, unsigned layer,
                unsigned step, unsigned purpose, float probability, float scale, const step_values *values) {
  unsigned i = INDEX;
  if (i > (count - 1) / 4) return;
  if (values) step = values->step;
  // A mask has less than 2^32 blocks; the layer's number lies above them.
  unsigned words[4] = {i, layer << 16, step, purpose};
  philox(words, key0, key1);
  unsigned first = 4 * i;
  int whole = first + 4 <= count;
  quad value;
  for (unsigned n = 0; n < 4; ++n) value.at[n] = narrow(0.0f);
  if (whole) value = ((const quad *)x)[i];
  for (unsigned n = 0; n < 4; ++n) {
    if (first + n >= count) break;
    float unit = (float)(words[n] >> 8) * (1.0f / 16777216.0f);
    float given = widen(whole ? value.at[n] : x[first + n]);
    value.at[n] = narrow(unit >= probability ? given * scale : 0.0f);
    if (!whole) y[first + n] = value.at[n];
  }
  if (whole) ((quad *)y)[i] = value;
}

// ---- Loss ----

// Softmax cross-entropy of each row of logits, in double precision. `gradient`, unless it is null, becomes the
// gradient of the mean with labels smoothed by `smoothing`. To `metrics`, unless it is null, are added: the sum of
// the losses (without smoothing) in units of 2^-24, the first step with a loss that is not finite, and the
// confusion matrix [label, prediction], where the first of equal logits is predicted. All are integers, so
// that the order of the additions does not matter.
KERNEL(cross_entropy)(const float *logits, const unsigned *labels, float *gradient,
                      unsigned long long *metrics, unsigned batch, unsigned classes, float smoothing,
                      unsigned long long step, const step_values *values) {
  unsigned i = INDEX;
  if (i >= batch) return;
  if (values) step = values->step_in_epoch;
  const float *row = logits + i * classes;
  unsigned label = labels[i];
  float top = row[0];
  unsigned predicted = 0;
  for (unsigned c = 1; c < classes; ++c)
    if (row[c] > row[predicted]) predicted = c;
  for (unsigned c = 1; c < classes; ++c)
    if (row[c] > top) top = row[c];
  double sum = 0.0;
  for (unsigned c = 0; c < classes; ++c) sum += exp((double)row[c] - (double)top);
  double offset = (double)top + log(sum);
  double other = (double)smoothing / (double)classes;
  double correct = 1.0 - (double)smoothing + other;
  if (gradient)
    for (unsigned c = 0; c < classes; ++c)
      gradient[i * classes + c] =
          (float)((exp((double)row[c] - offset) - (c == label ? correct : other)) / (double)batch);
  if (!metrics) return;
  double loss = label < classes ? offset - (double)row[label] : 1e300;
  // Written so that a NaN is not finite.
  if (!(loss < 1e30)) {
    atomicMin(&metrics[1], step);
    return;
  }
  // 2^39 is the most that the sum can be; a loss beyond a thousandth of it counts as that.
  if (loss > 549755813.0) loss = 549755813.0;
  atomicAdd(&metrics[0], (unsigned long long)((loss < 0.0 ? 0.0 : loss) * 16777216.0 + 0.5));
  atomicAdd(&metrics[2 + label * classes + predicted], 1ull);
}

// ---- Update ----

typedef struct {
  float *parameter;
  float *buffer;
  const void *gradient;
  // Elements, and how many chunks the tensors before this one have.
  unsigned count, chunks_before;
  // Whether the gradient is float whatever the activations are.
  unsigned wide, unused;
} tensor;

#define TENSORS 32
typedef struct { tensor at[TENSORS]; } tensors;

// Elements of a chunk, and threads that work on it.
#define CHUNK 2048
#define CREW 256

// The tensor of a chunk.
DEVICE tensor tensor_of(const tensors *all, unsigned count, unsigned chunk) {
  unsigned number = 0;
  while (number + 1 < count && all->at[number + 1].chunks_before <= chunk) ++number;
  return all->at[number];
}

DEVICE float gradient_of(tensor t, unsigned n) {
  return t.wide ? ((const float *)t.gradient)[n] : widen(((const act *)t.gradient)[n]);
}

// A step of gradient descent on all parameters: slope = scale gradient + decay parameter,
// buffer = momentum buffer + slope, parameter -= rate buffer; with `nesterov`,
// parameter -= rate (slope + momentum buffer). Without `scale` it is 1.
KERNEL(sgd)(const tensors all, unsigned count, unsigned chunks, float rate, float momentum, float decay,
            unsigned nesterov, const float *scale, const step_values *values) {
  unsigned i = INDEX;
  unsigned chunk = i / CREW, worker = i % CREW;
  if (chunk >= chunks) return;
  if (values) rate = values->learning_rate;
  float factor = scale ? *scale : 1.0f;
  tensor t = tensor_of(&all, count, chunk);
  unsigned first = (chunk - t.chunks_before) * CHUNK;
  for (unsigned n = first + worker; n < first + CHUNK && n < t.count; n += CREW) {
    float p = t.parameter[n];
    float slope = factor * gradient_of(t, n) + decay * p;
    float b = momentum * t.buffer[n] + slope;
    t.buffer[n] = b;
    t.parameter[n] = p - rate * (nesterov ? slope + momentum * b : b);
  }
}

// ema += factor (parameter - ema), with the EMA as the buffer.
KERNEL(ema)(const tensors all, unsigned count, unsigned chunks, float factor) {
  unsigned i = INDEX;
  unsigned chunk = i / CREW, worker = i % CREW;
  if (chunk >= chunks) return;
  tensor t = tensor_of(&all, count, chunk);
  unsigned first = (chunk - t.chunks_before) * CHUNK;
  for (unsigned n = first + worker; n < first + CHUNK && n < t.count; n += CREW)
    t.buffer[n] += factor * (t.parameter[n] - t.buffer[n]);
}

// ---- Gradient clipping ----

// Elements of a chunk here: more, so that there are few sums.
#define NORM_CHUNK 16384

// The sums of the squares of gradients, one sum a thread: CREW sums for each chunk.
KERNEL(squares)(const tensors all, unsigned count, unsigned chunks, double *sums) {
  unsigned i = INDEX;
  unsigned chunk = i / CREW, worker = i % CREW;
  if (chunk >= chunks) return;
  tensor t = tensor_of(&all, count, chunk);
  unsigned first = (chunk - t.chunks_before) * NORM_CHUNK;
  double sum = 0.0;
  for (unsigned n = first + worker; n < first + NORM_CHUNK && n < t.count; n += CREW) {
    double g = (double)gradient_of(t, n);
    sum += g * g;
  }
  sums[i] = sum;
}

// The sums of every GROUP elements, in their order: [count / GROUP rounded up].
KERNEL(sum_groups)(const double *x, double *sums, unsigned groups, unsigned count) {
  unsigned i = INDEX;
  if (i >= groups) return;
  unsigned first = i * GROUP, last = first + GROUP < count ? first + GROUP : count;
  double sum = 0.0;
  for (unsigned n = first; n < last; ++n) sum += x[n];
  sums[i] = sum;
}

// The factor of gradients whose squares have this sum, so that their norm is at most `most`; 1 where the norm is a NaN.
KERNEL(clip_factor)(const double *squares, float *factor, double most) {
  if (INDEX) return;
  double clipped = most / (sqrt(*squares) + 1e-6);
  *factor = clipped < 1.0 ? (float)clipped : 1.0f;
}
