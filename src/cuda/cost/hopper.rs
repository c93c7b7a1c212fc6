//! How long a product takes on Hopper's own kernels (`kernels/experts/hopper`), between two bounds: a count of clocks, unit by unit
//! and cluster by cluster. A model, not a measurement: every constant is here with where it comes from, to be replaced by what
//! is measured.

/// Rates of a GPU of this architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hopper {
    /// Clusters of two multiprocessors at work at once.
    pub clusters: usize,
    /// Clocks in a second that the GPU has at most.
    pub clock: f64,
    /// Clocks in a second when its power is what limits it.
    pub limited_clock: f64,
    /// Operations a second of dense products that it was seen to sustain.
    pub sustained: f64,
    /// Bytes of memory moved in a second.
    pub bandwidth: f64,
    /// Bytes that L2 gives all multiprocessors in a second.
    pub l2: f64,
    /// Clocks that a unit's way out takes beyond those of its shared memory and special functions.
    pub way_out: f64,
    /// The same where what is published of another kernel is believed.
    pub limited_way_out: f64,
}

impl Hopper {
    /// An H100 SXM.
    ///
    /// - `clock`: the vendor's boost clock; `sustained` and `bandwidth`: large dense products and copies as commonly measured;
    ///   `limited_clock`: the one at which 132 times 4096 operations a clock are what is sustained.
    /// - `l2`: an assumption between published microbenchmarks, 33 to 47 bytes a clock and multiprocessor.
    /// - `way_out`: counted, barriers and bulk stores; `limited_way_out`: a published product of this tile's size over a depth of 512
    ///   (553 TFLOP/s) takes about 3300 clocks beside its main loop, of which shared memory explains 1024.
    pub const H100: Self = Self {
        clusters: 66,
        clock: 1.755e9,
        limited_clock: 1.48e9,
        sustained: 800e12,
        bandwidth: 3.0e12,
        l2: 8.0e12,
        way_out: 350.0,
        limited_way_out: 2276.0,
    };
}

/// A product as its kernel does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows, of experts that were chosen at random.
    pub rows: usize,
    /// Experts that have rows.
    pub experts: usize,
    /// Of the product, both halves when gated.
    pub columns: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Bytes that are written for a row and a column.
    pub out_bytes: f64,
    /// Special functions for a row and a column.
    pub special: f64,
    /// Bytes moved through memory when nothing is read twice.
    pub bytes: f64,
}

/// Gradients of some experts' weights: of each the sum of products of two factors' rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradient {
    /// Rows, of experts that were chosen at random.
    pub rows: usize,
    /// Experts, those without rows too.
    pub experts: usize,
    /// Columns of the factor that is found by token, and of the other one.
    pub sides: [usize; 2],
    /// Bytes that are written, or read and written, for an element of a gradient.
    pub out_bytes: f64,
    /// Bytes moved through memory when nothing is read twice.
    pub bytes: f64,
}

/// How long, at best and at worst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Seconds when neither power nor what is not known of the way out gets in the way.
    pub least: f64,
    /// Seconds when both do.
    pub most: f64,
    /// Operations of use.
    pub operations: f64,
}

impl Prediction {
    /// Useful operations a second, the lower bound first.
    pub fn rates(&self) -> [f64; 2] {
        [self.operations / self.most, self.operations / self.least]
    }
}

/// Rows of a unit, which a cluster divides, and of a warpgroup.
const UNIT_ROWS: usize = 256;
pub(in crate::cuda) const WARPGROUP_ROWS: usize = 64;
/// Columns of a unit.
const UNIT_COLUMNS: usize = 256;
/// Elements of the depth in a step.
pub(in crate::cuda) const STEP: usize = 64;
/// Units of an expert whose columns come before the next units.
const BAND: usize = 8;
/// Clocks of the tensor cores for a step of a warpgroup: 64 × 256 × 64 products, 2048 a clock.
const TENSOR: f64 = 512.0;
/// Clocks of shared memory for a step: 256 for the weights that come in, and for each warpgroup 64 for its rows that come in, 64 and
/// 256 for rows and weights that it reads.
pub(in crate::cuda) const SHARED: f64 = 256.0;
pub(in crate::cuda) const SHARED_OF_WARPGROUP: f64 = 384.0;
/// Special functions of a multiprocessor in a clock.
const SPECIAL: f64 = 16.0;
/// Bytes of shared memory in a clock. What is written goes in and comes out.
const WAVEFRONT: f64 = 128.0;

/// Rows of each expert when every row has one of them by chance: as many as one of a normal distribution's parts of equal
/// probability has, whose quantiles are taken from the logistic distribution that is nearest to it.
fn experts(rows: usize, experts: usize) -> Vec<usize> {
    let experts = experts.max(1);
    let mean = rows as f64 / experts as f64;
    let deviation = (mean * (1.0 - 1.0 / experts as f64)).sqrt();
    let of = |expert: usize| {
        let part = (expert as f64 + 0.5) / experts as f64;
        (mean + deviation * (part / (1.0 - part)).ln() / 1.702).max(0.0)
    };
    let all: f64 = (0..experts).map(of).sum();
    // Rounded where they end, so that none is lost.
    let mut ends = (0..experts).scan(0.0, |sum, expert| {
        *sum += of(expert) / all * rows as f64;
        Some(sum.round() as usize)
    });
    let mut before = 0;
    let mut counts: Vec<usize> = ends.by_ref().map(|end| end - std::mem::replace(&mut before, end)).collect();
    // What rounding lost or added in the last place.
    if let Some(last) = counts.last_mut() {
        *last = (*last + rows).saturating_sub(before);
    }
    counts
}

/// A unit of so many rows, at one clock rate.
struct UnitClocks {
    main_loop: f64,
    way_out: f64,
}

impl Hopper {
    /// What the product is predicted to take.
    pub fn predict(&self, product: &Product) -> Prediction {
        let operations = 2.0 * (product.rows * product.columns * product.depth) as f64;
        let clusters = |clock, way_out| self.longest_cluster(product, clock, way_out);
        self.bounded(operations, self.issued(product), product.bytes, clusters)
    }

    /// What the gradients are predicted to take.
    pub fn predict_gradient(&self, gradient: &Gradient) -> Prediction {
        let [m, n] = gradient.sides;
        let operations = 2.0 * (gradient.rows * m * n) as f64;
        let steps: usize = experts(gradient.rows, gradient.experts).iter().map(|rows| rows.div_ceil(STEP)).sum();
        let padded = m.next_multiple_of(WARPGROUP_ROWS) * n.next_multiple_of(UNIT_COLUMNS);
        let clusters = |clock, way_out| self.longest_of_gradient(gradient, clock, way_out);
        self.bounded(operations, 2.0 * (padded * steps * STEP) as f64, gradient.bytes, clusters)
    }

    /// From clocks of the cluster that has most to do, given a clock and a way out, and from what is moved and multiplied in all.
    fn bounded(&self, operations: f64, issued: f64, bytes: f64, clusters: impl Fn(f64, f64) -> f64) -> Prediction {
        if operations == 0.0 {
            return Prediction { least: 0.0, most: 0.0, operations };
        }
        let [quick, slow] = [(self.clock, self.way_out), (self.limited_clock, self.limited_way_out)]
            .map(|(clock, way_out)| clusters(clock, way_out) / clock);
        let memory = bytes / self.bandwidth;
        let issued = issued / self.sustained;
        // Where memory and products take turns to wait for each other, a quarter of the shorter is not hidden.
        Prediction { least: quick.max(issued).max(memory), most: slow.max(memory) + slow.min(memory) / 4.0, operations }
    }

    /// Clocks of the cluster that has most to do. Units are dealt out as on the device.
    fn longest_cluster(&self, product: &Product, clock: f64, way_out: f64) -> f64 {
        let mut clusters = vec![0.0; self.clusters];
        let (columns, mut next) = (product.columns.div_ceil(UNIT_COLUMNS), 0);
        let whole = self.unit(product, UNIT_ROWS, clock, way_out);
        for rows in experts(product.rows, product.experts) {
            let last = self.unit(product, rows - rows.saturating_sub(1) / UNIT_ROWS * UNIT_ROWS, clock, way_out);
            let units = rows.div_ceil(UNIT_ROWS);
            for first in (0..units).step_by(BAND) {
                let band = first..units.min(first + BAND);
                for unit in (0..columns).flat_map(|_| band.clone()) {
                    let of = if unit + 1 == units { &last } else { &whole };
                    clusters[next % self.clusters] += of.main_loop + of.way_out;
                    next += 1;
                }
            }
        }
        clusters.into_iter().fold(0.0, f64::max)
    }

    /// The same for gradients: every expert has as many units, of as many steps as it has rows.
    fn longest_of_gradient(&self, gradient: &Gradient, clock: f64, way_out: f64) -> f64 {
        let mut clusters = vec![0.0; self.clusters];
        let [m, n] = gradient.sides;
        let product = Product {
            rows: gradient.rows,
            experts: gradient.experts,
            columns: n,
            depth: 0,
            out_bytes: gradient.out_bytes,
            special: 0.0,
            bytes: 0.0,
        };
        let mut next = 0;
        for depth in experts(gradient.rows, gradient.experts) {
            let product = Product { depth, ..product };
            for _ in 0..n.div_ceil(UNIT_COLUMNS) {
                for first in (0..m).step_by(UNIT_ROWS) {
                    let of = self.unit(&product, (m - first).min(UNIT_ROWS), clock, way_out);
                    clusters[next % self.clusters] += of.main_loop + of.way_out;
                    next += 1;
                }
            }
        }
        clusters.into_iter().fold(0.0, f64::max)
    }

    fn unit(&self, product: &Product, rows: usize, clock: f64, way_out: f64) -> UnitClocks {
        // The block that has more of the rows.
        let warpgroups = rows.div_ceil(2 * WARPGROUP_ROWS) as f64;
        // A unit without a step still leaves.
        let steps = product.depth.div_ceil(STEP).max(1) as f64;
        let multiprocessors = 2.0 * self.clusters as f64;
        let l2_of_clock = self.l2 / multiprocessors / clock;
        let out_bytes = (rows * UNIT_COLUMNS) as f64 * product.out_bytes;
        // Both blocks fetch: rows their own, weights one half each.
        let factors = ((rows + UNIT_COLUMNS) * 2 * STEP) as f64;
        let l2 = (factors + out_bytes / steps) / 2.0 / l2_of_clock;
        let step = (TENSOR * warpgroups).max(SHARED + SHARED_OF_WARPGROUP * warpgroups).max(l2);
        let elements = warpgroups * (WARPGROUP_ROWS * UNIT_COLUMNS) as f64;
        let special = elements * product.special / SPECIAL;
        let shared = 2.0 * elements * product.out_bytes / WAVEFRONT;
        UnitClocks { main_loop: steps * step, way_out: special.max(shared) + way_out }
    }

    /// Operations that tensor cores do, padding included.
    fn issued(&self, product: &Product) -> f64 {
        let columns = product.columns.div_ceil(UNIT_COLUMNS) * UNIT_COLUMNS;
        let depth = product.depth.div_ceil(STEP) * STEP;
        let rows: usize =
            experts(product.rows, product.experts).iter().map(|rows| rows.next_multiple_of(WARPGROUP_ROWS)).sum();
        2.0 * (rows * columns * depth) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marin_down() -> Product {
        Product {
            rows: 16384,
            experts: 8,
            columns: 2048,
            depth: 3072,
            out_bytes: 2.0,
            special: 0.0,
            bytes: 2.0 * (8.0 * 2048.0 * 3072.0 + 16384.0 * 5120.0),
        }
    }

    /// Of one expert: 64 units of 8 columns are 512 for 66 clusters, eight turns, each of 48 steps.
    #[test]
    fn a_product_is_counted_by_hand() {
        let h100 = Hopper { l2: f64::INFINITY, ..Hopper::H100 };
        let unit = 48.0 * 1024.0 + 1024.0 + 350.0;
        let product = Product { experts: 1, ..marin_down() };
        assert_eq!(h100.longest_cluster(&product, h100.clock, h100.way_out), 8.0 * unit);
        let predicted = h100.predict(&product);
        assert_eq!(predicted.operations, 2.0 * 16384.0 * 2048.0 * 3072.0);
        let sustained = predicted.operations / 800e12;
        assert!(predicted.least >= sustained && predicted.least < 1.01 * sustained.max(8.0 * unit / 1.755e9));
        assert!(predicted.most > 8.0 * unit / 1.48e9);
        let [low, high] = predicted.rates();
        assert!(low < high && high <= 800e12);
    }

    #[test]
    fn what_is_left_of_an_expert_costs_half_a_unit_or_a_whole() {
        let h100 = Hopper { l2: f64::INFINITY, ..Hopper::H100 };
        let of = |rows| h100.unit(&Product { out_bytes: 0.0, ..marin_down() }, rows, h100.clock, 0.0).main_loop / 48.0;
        assert_eq!([of(1), of(64), of(128), of(129), of(256)], [640.0, 640.0, 640.0, 1024.0, 1024.0]);
        // L2 is slower than tensor cores when it gives a multiprocessor less than 32 bytes a clock.
        let slow = Hopper { l2: 16.0 * 132.0 * 1.755e9, ..Hopper::H100 };
        let unit = slow.unit(&Product { out_bytes: 0.0, ..marin_down() }, 256, slow.clock, 0.0);
        assert_eq!(unit.main_loop, 48.0 * 2048.0);
    }

    /// marin's dW_out of one expert with all rows: 96 units, the longest of two turns of 256 steps.
    #[test]
    fn a_gradient_is_counted_by_hand() {
        let h100 = Hopper { l2: f64::INFINITY, ..Hopper::H100 };
        let gradient = Gradient { rows: 16384, experts: 1, sides: [2048, 3072], out_bytes: 2.0, bytes: 1e8 };
        let unit = 256.0 * 1024.0 + 1024.0 + 350.0;
        assert_eq!(h100.longest_of_gradient(&gradient, h100.clock, h100.way_out), 2.0 * unit);
        let predicted = h100.predict_gradient(&gradient);
        assert_eq!(predicted.operations, 2.0 * 16384.0 * 2048.0 * 3072.0);
        assert_eq!(predicted.least, 2.0 * unit / 1.755e9);
    }

    #[test]
    fn weights_are_what_few_rows_wait_for() {
        let decode = Product { rows: 64, experts: 64, bytes: 64.0 * 2048.0 * 768.0 * 2.0, depth: 768, ..marin_down() };
        let predicted = Hopper::H100.predict(&decode);
        assert_eq!(predicted.least, decode.bytes / 3e12);
        assert!(predicted.most > predicted.least);
        let nothing = Hopper::H100.predict(&Product { rows: 0, ..decode });
        assert_eq!((nothing.least, nothing.most), (0.0, 0.0));
    }

    /// All rows are there, and as far from even as chance makes them.
    #[test]
    fn every_row_is_some_experts() {
        for (rows, experts) in [(10, 3), (9, 3), (2, 5), (1000, 7), (0, 4), (131_072, 128)] {
            let counts = super::experts(rows, experts);
            assert_eq!((counts.len(), counts.iter().sum::<usize>()), (experts, rows));
        }
        let counts = super::experts(131_072, 128);
        let deviation = (counts.iter().map(|count| (*count as f64 - 1024.0).powi(2)).sum::<f64>() / 128.0).sqrt();
        assert!((30.0..34.0).contains(&deviation), "{deviation}");
    }
}
