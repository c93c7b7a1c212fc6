//! The checks of importance from queries and keys can fail: bugs planted in its places, tiles, products and reductions.

mod harness;

use da_moe::{AttentionSource, DType, Keep, LayerConfig, Normalize};
use harness::case::{Attend, Case, attention_source};
use harness::planted::Shows::{Report, Wrong};
use harness::planted::{BOUNDS, Bug, RACE, Shows, UNINITIALISED, assert_all_found, assert_clean};

/// Two tiles of rows, several of columns, nothing a multiple of anything, two query heads a key head.
fn attend(measure: AttentionSource, dtype: DType, width: usize, causal: bool) -> Case {
    let mut config = LayerConfig::da_moe(5, 2, 4, 3);
    config.importance.source = attention_source(measure);
    config.importance.normalize = Normalize::None;
    (config.importance.causal, config.importance.allow_future) = (causal, true);
    let lengths = vec![150, 0, 9];
    Case { dtype, lengths, heads: [4, 2, width], masked_every: 6, ..Case::plain(config) }
}

/// Own rows in registers, copies in the background.
fn received_sum() -> Case {
    attend(AttentionSource::ReceivedSum, DType::Bf16, 72, false)
}

fn received_mean() -> Case {
    attend(AttentionSource::ReceivedMean, DType::F16, 16, true)
}

fn received_max() -> Case {
    Case { attend: Attend::WithLse, ..attend(AttentionSource::ReceivedMax, DType::Bf16, 24, true) }
}

fn peak() -> Case {
    attend(AttentionSource::GivenPeak, DType::Bf16, 40, true)
}

/// Single elements instead of copies in the background.
fn entropy() -> Case {
    attend(AttentionSource::GivenEntropy, DType::F16, 21, false)
}

fn known_entropy() -> Case {
    Case { attend: Attend::WithLse, ..attend(AttentionSource::GivenEntropy, DType::F32, 20, true) }
}

/// Own rows that come with every tile.
fn wide() -> Case {
    attend(AttentionSource::GivenPeak, DType::Bf16, 136, false)
}

fn of_self() -> Case {
    attend(AttentionSource::GivenSelf, DType::F32, 7, true)
}

/// Copies that have not arrived, or have been overwritten.
const COPIES: Shows = Report("race|asynchronous|uninitialised");

const BUGS: &[Bug] = &[
    // Places.
    Bug {
        file: "attention/place.cuh",
        from: "sequences.start(middle) / OWN + middle <= index",
        to: "sequences.start(middle) / OWN <= index",
        shows: Report("out of bounds|uninitialised"),
        call: received_sum,
    },
    Bug {
        file: "attention/place.cuh",
        from: "range.end - range.first, (index",
        to: "range.end - range.first + 1, (index",
        shows: Report("race|out of bounds"),
        call: received_max,
    },
    Bug {
        file: "attention/place.cuh",
        from: "keeps_keys(p) ? Span{place.row, place.length}",
        to: "keeps_keys(p) ? Span{place.row + WALK, place.length}",
        shows: Wrong,
        call: received_max,
    },
    Bug {
        file: "attention/place.cuh",
        from: "Span{0, min(place.row + OWN, place.length)}",
        to: "Span{0, min(place.row + WALK, place.length)}",
        shows: Wrong,
        call: peak,
    },
    Bug {
        file: "attention/place.cuh",
        from: "keeps_keys(p) ? inside - earlier : earlier + own",
        to: "keeps_keys(p) ? inside - earlier - own : earlier + own",
        shows: Wrong,
        call: received_mean,
    },
    Bug {
        file: "attention/place.cuh",
        from: "const Span after = {tile_end,",
        to: "const Span after = {place.length,",
        shows: Wrong,
        call: entropy,
    },
    // Tiles.
    Bug {
        file: "attention/tile.cuh",
        from: "/ (keys ? p.heads_per_key : 1);",
        to: "% (keys ? p.heads_per_key : 1 << 30);",
        shows: Wrong,
        call: received_sum,
    },
    Bug {
        file: "attention/tile.cuh",
        from: "min(max(p.width - from, 0), N)",
        to: "N",
        shows: Report("race|out of bounds"),
        call: entropy,
    },
    Bug {
        file: "attention/tile.cuh",
        from: "first + row + further < rows.count ? elements : 0;",
        to: "elements;",
        shows: BOUNDS,
        call: wide,
    },
    Bug {
        file: "attention/tile.cuh",
        from: "from / STEP * STEP >= p.width",
        to: "from >= p.width",
        shows: UNINITIALISED,
        call: peak,
    },
    Bug {
        file: "attention/tile.cuh",
        from: "(piece ^ row / (8 / PIECES) % PIECES)",
        to: "(piece ^ row % PIECES & lane_index())",
        shows: Report("race|uninitialised"),
        call: wide,
    },
    // The ring.
    Bug {
        file: "attention/walk.cuh",
        from: "            ptx::cp_async_wait<RING - 2>();\n",
        to: "",
        shows: COPIES,
        call: received_sum,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "            ptx::cp_async_wait<RING - 2>();\n            __syncthreads();\n",
        to: "            ptx::cp_async_wait<RING - 2>();\n",
        shows: COPIES,
        call: peak,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "            ptx::cp_async_wait<RING - 2>();\n            __syncthreads();\n            feed.fetch(p);\n",
        to: "            feed.fetch(p);\n            ptx::cp_async_wait<RING - 1>();\n            __syncthreads();\n",
        shows: COPIES,
        call: wide,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "                engine.keep(feed.ring, chunk, p.width);\n            }\n            __syncthreads();\n",
        to: "                engine.keep(feed.ring, chunk, p.width);\n            }\n",
        shows: COPIES,
        call: received_sum,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "    ptx::cp_async_wait<0>();\n    __syncthreads();\n#pragma unroll\n    for (int r",
        to: "    ptx::cp_async_wait<0>();\n#pragma unroll\n    for (int r",
        shows: RACE,
        call: known_entropy,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "shifts + column % (2 * WALK);",
        to: "shifts;",
        shows: RACE,
        call: received_sum,
    },
    // Who sees whom.
    Bug {
        file: "attention/walk.cuh",
        from: "keys ? row <= met : met <= row",
        to: "keys ? row < met : met <= row",
        shows: Wrong,
        call: received_max,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "column > row ? Sight::Some : Sight::All",
        to: "column > row + WARP ? Sight::Some : Sight::All",
        shows: Wrong,
        call: peak,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "row < end ? (p.mask == nullptr ? 1 : p.mask[token]) : 0;",
        to: "row < end ? 1 : 0;",
        shows: Wrong,
        call: entropy,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "part != 0 ? -lse : -INFINITY;",
        to: "part != 0 ? -lse : 0.0f;",
        shows: Wrong,
        call: received_sum,
    },
    // Products.
    Bug {
        file: "attention/tensor_core.cuh",
        from: "lane_index() % 8 + lane_index() / 16 * 8;",
        to: "lane_index() % 16;",
        shows: Wrong,
        call: received_sum,
    },
    Bug {
        file: "attention/tensor_core.cuh",
        from: "sums[r / 2][c / 2][r % 2 * 2 + c % 2]",
        to: "sums[r / 2][c / 2][c % 2 * 2 + r % 2]",
        shows: Wrong,
        call: wide,
    },
    Bug {
        file: "attention/simt.cuh",
        from: "sums[r][c] += a[r].w * b.w;",
        to: "sums[r][c] += a[r].w * b.z;",
        shows: Wrong,
        call: known_entropy,
    },
    // Reductions.
    Bug { file: "attention/reduce.cuh", from: "        sum *= factor;\n", to: "", shows: Wrong, call: peak },
    Bug {
        file: "attention/reduce.cuh",
        from: "(weighted + sum * fmaxf(largest - base, NOTHING)) * factor",
        to: "weighted * factor",
        shows: Wrong,
        call: entropy,
    },
    Bug {
        file: "attention/reduce.cuh",
        from: "(seen.weighted + base * seen.sum)",
        to: "seen.weighted",
        shows: Wrong,
        call: known_entropy,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "lane < Engine::LANES; lane++",
        to: "lane < Engine::LANES - 1; lane++",
        shows: Wrong,
        call: received_mean,
    },
    Bug {
        file: "attention/walk.cuh",
        from: "    if (place.row + row >= place.length) {\n        return;",
        to: "    if (place.row + row >= place.length - 1) {\n        return;",
        shows: UNINITIALISED,
        call: received_mean,
    },
    Bug {
        file: "importance_attention_f32.cu",
        from: "head / p.heads_per_key * p.k_head_stride",
        to: "head * p.k_head_stride",
        shows: BOUNDS,
        call: of_self,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_all_found(BUGS, Some(Keep::Nothing));
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    let calls = [received_sum, received_mean, received_max, peak, entropy, known_entropy, wide, of_self];
    calls.into_iter().for_each(assert_clean);
}
