// The selective scan on the CPU, float32, forward and recomputing backward, one call per thread.
//
// A vector holds the same step of W neighbouring channels, and a state n is walked through CHUNK tokens at a time, so
// that B and C are read where they lie, one number for all lanes, and sums over the states need no shuffles. The forward
// keeps the state before every chunk; the backward recomputes one chunk and walks it back. Sums over tokens are taken
// in float within a chunk and in double across chunks.
//
// A row is a group of channels that share B and C, of one element of the batch. Built at the width of the machine's
// registers (wider generic vectors would be split and spilled) and without -ffast-math, which would set flush-to-zero
// for the whole process.

#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int CHUNK = 32;  // tokens
constexpr int BLOCKS = 4;  // of W channels, walked back together: they add to the same gradients of B and C

typedef float vec __attribute__((vector_size(4 * W)));
typedef std::int32_t ivec __attribute__((vector_size(4 * W)));
typedef std::int64_t i64;

extern "C" struct Scan {
    i64 rows, groups, channels, state, length, softplus;  // channels of a row
    const float *u, *delta, *A, *B, *C, *D, *bias;        // (rows, channels, length), (rows, state, length), by channel
    float *y, *kept;                                      // kept: (rows, blocks, chunks, state, W)
    const float* y_grad;
    float *u_grad, *delta_grad;
    float *B_grad, *C_grad;                               // (parts, rows, state, length)
    float *A_grad, *D_grad, *bias_grad;                   // by row and channel
};

namespace {

// Results and states below 1e-38 are zero in our own threads: a state that decays into them slows some processors
// a hundredfold. The setting is the thread's and is put back.
struct FlushToZero {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    FlushToZero() { _mm_setcsr(before | 0x8040); }
    ~FlushToZero() { _mm_setcsr(before); }
#endif
};

inline vec splat(float x) { return x - vec{}; }

// 2^x to one unit in the last place; 0 below 2^-126, infinity from 2^127.5, NaN of NaN.
inline vec exp2(vec x) {
    x = x < -127.0f ? splat(-127.0f) : x;
    x = x > 128.0f ? splat(128.0f) : x;
    const vec rounded = x + 12582912.0f;  // 1.5 * 2^23: the integer stands in the lowest bits
    const vec r = x - (rounded - 12582912.0f);
    const ivec scale = ((ivec)rounded - (0x4B400000 - 127)) << 23;
    vec p = r * 1.5353362e-4f + 1.3398875e-3f;
    p = p * r + 9.6184370e-3f;
    p = p * r + 5.5503324e-2f;
    p = p * r + 2.4022648e-1f;
    p = p * r + 6.9314720e-1f;
    p = p * r + 1.0f;
    return p * (vec)scale;
}

constexpr float LOG2E = 1.4426950408889634f;

// e^-|x|, of which sigmoid and softplus are made.
inline vec exp_minus_abs(vec x) { return exp2((x < 0.0f ? x : -x) * LOG2E); }

inline vec sigmoid(vec x) {
    const vec e = exp_minus_abs(x);
    return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

// max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)), whose argument is at most 1/3.
inline vec softplus(vec x) {
    const vec e = exp_minus_abs(x), s = e / (2.0f + e), q = s * s;
    vec p = q * (1.0f / 15) + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return (x < 0.0f ? splat(0.0f) : x) + 2.0f * s * p;
}

inline float sum(vec x) {
    float lanes[W];
    std::memcpy(lanes, &x, sizeof x);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

struct Tile {  // CHUNK steps of W channels
    vec at[CHUNK];

    // From `lanes` rows of `length` numbers; the other lanes are zero.
    void load(const float* from, i64 length, int lanes, int steps) {
        float(*to)[W] = reinterpret_cast<float(*)[W]>(at);
        if (lanes < W) std::memset(at, 0, sizeof at);
        for (int lane = 0; lane < lanes; ++lane)
            for (int t = 0; t < steps; ++t) to[t][lane] = from[lane * length + t];
    }
    void store(float* to, i64 length, int lanes, int steps) const {
        const float(*from)[W] = reinterpret_cast<const float(*)[W]>(at);
        for (int lane = 0; lane < lanes; ++lane)
            for (int t = 0; t < steps; ++t) to[lane * length + t] = from[t][lane];
    }
};

vec load_column(const float* from, i64 stride, int lanes) {
    float to[W] = {};
    for (int lane = 0; from != nullptr && lane < lanes; ++lane) to[lane] = from[lane * stride];
    vec x;
    std::memcpy(&x, to, sizeof x);
    return x;
}

// Where a block of W channels lies in the arrays.
struct Block {
    i64 row, index, channel, offset, kept;
    int lanes;

    Block(const Scan& s, i64 row, i64 index) : row(row), index(index) {
        const i64 blocks = (s.channels + W - 1) / W, chunks = (s.length + CHUNK - 1) / CHUNK;
        const i64 rest = s.channels - index * W;
        lanes = rest < W ? static_cast<int>(rest) : W;
        channel = (row % s.groups) * s.channels + index * W;      // in A, D, bias
        offset = (row * s.channels + index * W) * s.length;       // in u, delta, y
        kept = (row * blocks + index) * chunks * s.state * W;
    }
};

// Of the block's channels, the n-th of `per` numbers; zero where the parameter is not given.
inline vec parameter(const float* from, const Block& b, i64 n = 0, i64 per = 1) {
    return load_column(from == nullptr ? nullptr : from + b.channel * per + n, per, b.lanes);
}

// One chunk of one block: the inputs by step.
struct Steps {
    Tile u, raw, dt, w;

    void load(const Scan& s, const Block& b, vec bias, i64 start, int steps) {
        u.load(s.u + b.offset + start, s.length, b.lanes, steps);
        raw.load(s.delta + b.offset + start, s.length, b.lanes, steps);
        for (int t = 0; t < steps; ++t) {
            raw.at[t] += bias;
            dt.at[t] = s.softplus ? softplus(raw.at[t]) : raw.at[t];
            w.at[t] = dt.at[t] * u.at[t];
        }
    }
};

void forward(const Scan& s, const Block& b) {
    const vec bias = parameter(s.bias, b), skip = parameter(s.D, b);
    std::vector<vec> rate(s.state), h(s.state, vec{});
    for (i64 n = 0; n < s.state; ++n) rate[n] = parameter(s.A, b, n, s.state) * LOG2E;
    Steps in;
    Tile y;
    float* kept = s.kept == nullptr ? nullptr : s.kept + b.kept;
    for (i64 start = 0; start < s.length; start += CHUNK) {
        const int steps = s.length - start < CHUNK ? static_cast<int>(s.length - start) : CHUNK;
        in.load(s, b, bias, start, steps);
        for (int t = 0; t < steps; ++t) y.at[t] = skip * in.u.at[t];
        for (i64 n = 0; n < s.state; ++n) {
            const float* B = s.B + (b.row * s.state + n) * s.length + start;
            const float* C = s.C + (b.row * s.state + n) * s.length + start;
            const vec r = rate[n];
            vec state = h[n];
            if (kept != nullptr) std::memcpy(kept, &state, sizeof state), kept += W;
            for (int t = 0; t < steps; ++t) {
                state = exp2(in.dt.at[t] * r) * state + in.w.at[t] * B[t];
                y.at[t] += state * C[t];
            }
            h[n] = state;
        }
        y.store(s.y + b.offset + start, s.length, b.lanes, steps);
    }
}

// What the walk back holds of one block.
struct Walk {
    Block b;
    vec bias, skip;
    std::vector<vec> A, adjoint;
    std::vector<double> A_grad, D_grad, bias_grad;  // (state, W), (W), (W)
    Steps in;
    Tile y_grad, w_grad, dt_grad;

    Walk(const Scan& s, Block b)
        : b(b), bias(parameter(s.bias, b)), skip(parameter(s.D, b)),
          A(s.state), adjoint(s.state, vec{}), A_grad(s.state * W), D_grad(W), bias_grad(W) {
        for (i64 n = 0; n < s.state; ++n) A[n] = parameter(s.A, b, n, s.state);
    }

    void load(const Scan& s, i64 start, int steps) {
        in.load(s, b, bias, start, steps);
        y_grad.load(s.y_grad + b.offset + start, s.length, b.lanes, steps);
        for (int t = 0; t < steps; ++t) w_grad.at[t] = dt_grad.at[t] = vec{};
    }

    // State n through the chunk, forward to recompute and back; adds to the gradients of B and C by step and lane.
    void walk(const Scan& s, i64 n, i64 chunk, int steps, const float* B, const float* C, Tile& B_sum, Tile& C_sum) {
        Tile decays, states;  // the states before each step
        vec state, k = adjoint[n], of_A = {};
        std::memcpy(&state, s.kept + b.kept + (chunk * s.state + n) * W, sizeof state);
        const vec a = A[n], rate = a * LOG2E;
        for (int t = 0; t < steps; ++t) {
            states.at[t] = state;
            decays.at[t] = exp2(in.dt.at[t] * rate);
            state = decays.at[t] * state + in.w.at[t] * B[t];
        }
        for (int t = steps - 1; t >= 0; --t) {
            C_sum.at[t] += y_grad.at[t] * state;
            state = states.at[t];
            k += y_grad.at[t] * C[t];
            B_sum.at[t] += in.w.at[t] * k;
            w_grad.at[t] += k * B[t];
            k *= decays.at[t];
            const vec q = k * state;
            of_A += q * in.dt.at[t];
            dt_grad.at[t] += q * a;
        }
        adjoint[n] = k;
        for (int lane = 0; lane < W; ++lane) A_grad[n * W + lane] += of_A[lane];
    }

    void write(const Scan& s, i64 start, int steps) {
        vec of_D = {}, of_bias = {};
        for (int t = 0; t < steps; ++t) {
            vec of_raw = dt_grad.at[t] + w_grad.at[t] * in.u.at[t];
            if (s.softplus) of_raw *= sigmoid(in.raw.at[t]);
            w_grad.at[t] = w_grad.at[t] * in.dt.at[t] + skip * y_grad.at[t];  // from here on of u
            dt_grad.at[t] = of_raw;
            of_D += y_grad.at[t] * in.u.at[t];
            of_bias += of_raw;
        }
        w_grad.store(s.u_grad + b.offset + start, s.length, b.lanes, steps);
        dt_grad.store(s.delta_grad + b.offset + start, s.length, b.lanes, steps);
        for (int lane = 0; lane < W; ++lane) D_grad[lane] += of_D[lane], bias_grad[lane] += of_bias[lane];
    }

    void write_parameters(const Scan& s) const {
        for (int lane = 0; lane < b.lanes; ++lane) {
            const i64 channel = b.row * s.channels + b.index * W + lane;
            s.D_grad[channel] = static_cast<float>(D_grad[lane]);
            s.bias_grad[channel] = static_cast<float>(bias_grad[lane]);
            for (i64 n = 0; n < s.state; ++n)
                s.A_grad[channel * s.state + n] = static_cast<float>(A_grad[n * W + lane]);
        }
    }
};

// Blocks first .. last of a row; they add to one part of the gradients of B and C, which is zero at the start.
void backward(const Scan& s, i64 row, i64 first, i64 last, float* B_grad, float* C_grad) {
    std::vector<Walk> walks;
    for (i64 index = first; index < last; ++index) walks.emplace_back(s, Block(s, row, index));
    for (i64 chunk = (s.length + CHUNK - 1) / CHUNK - 1; chunk >= 0; --chunk) {
        const i64 start = chunk * CHUNK;
        const int steps = s.length - start < CHUNK ? static_cast<int>(s.length - start) : CHUNK;
        for (Walk& walk : walks) walk.load(s, start, steps);
        for (i64 n = 0; n < s.state; ++n) {
            const i64 place = (row * s.state + n) * s.length + start;
            Tile B_sum = {}, C_sum = {};
            for (Walk& walk : walks) walk.walk(s, n, chunk, steps, s.B + place, s.C + place, B_sum, C_sum);
            for (int t = 0; t < steps; ++t) {
                B_grad[place + t] += sum(B_sum.at[t]);
                C_grad[place + t] += sum(C_sum.at[t]);
            }
        }
        for (Walk& walk : walks) walk.write(s, start, steps);
    }
    for (const Walk& walk : walks) walk.write_parameters(s);
}

}  // namespace

extern "C" {

int scan_lanes() { return W; }
int scan_chunk() { return CHUNK; }

// Items first .. last of rows * blocks.
void scan_forward(const Scan* s, i64 first, i64 last) {
    const FlushToZero flush;
    const i64 blocks = (s->channels + W - 1) / W;
    for (i64 item = first; item < last; ++item) forward(*s, Block(*s, item / blocks, item % blocks));
}

// Items first .. last of rows * parts: a row's blocks are dealt out to `parts` copies of the gradients of B and C.
void scan_backward(const Scan* s, i64 first, i64 last, i64 parts) {
    const FlushToZero flush;
    const i64 blocks = (s->channels + W - 1) / W, size = s->rows * s->state * s->length;
    for (i64 item = first; item < last; ++item) {
        const i64 row = item / parts, part = item % parts;
        const i64 begin = blocks * part / parts, end = blocks * (part + 1) / parts;
        for (i64 block = begin; block < end; block += BLOCKS)
            backward(*s, row, block, block + BLOCKS < end ? block + BLOCKS : end, s->B_grad + part * size,
                     s->C_grad + part * size);
    }
}

}  // extern "C"
