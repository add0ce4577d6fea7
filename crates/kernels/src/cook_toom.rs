//! The matrices of Winograd's convolution algorithms, after Cook and Toom.
//!
//! A convolution in one dimension multiplies polynomials: with `g` of `R` and `h` of `M`
//! coefficients, `s = g h` has `T = M + R - 1`, and is determined by its values at `T - 1` points `a_k`
//! and its leading coefficient (its "value at infinity"), each of which is one product. With
//!
//! - `A` (`T` by `M`) and `G` (`T` by `R`): the powers of the points, `a_k^i`; in the last row, the
//!   one of infinity, 0 but for a last 1;
//! - `B` (`T` by `T`): in row `k` the coefficients of `prod over l != k of (x - a_l)`, in the last
//!   row those of `prod over l of (x - a_l)`; row `k` of `G` is divided by the value of `B`'s row at
//!   `a_k`, which makes these Lagrange's interpolation polynomials,
//!
//! `s = B' ((G g) * (A h))`, with `*` the elementwise product. Transposing the bilinear
//! form gives the correlation that a network's convolution is, for `T` inputs `d` and `M` outputs
//! `y`:
//!
//! `y = A' ((G g) * (B d))`,
//!
//! and its other transposes are the two gradients. In two dimensions each matrix acts on rows and
//! columns. (S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast
//! Algorithms for Convolutional Neural Networks", 2015, whose `B'` is our `B`.)
//!
//! The points come in pairs `a, -a`, so that the rows of a pair are the same but for the signs of the
//! odd columns: one is the sum of what the even and the odd columns give, the other the difference.
//! Small powers of two keep the rounding errors small (B. Barabasz et al., "Error Analysis and
//! Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020) and the entries of
//! `A` and `B` exact.

#![allow(clippy::needless_range_loop)] // Indices as in the formulas.

use crate::simd::Real;
use pulp::Simd;

/// The positive points of the pairs.
const PAIRS: [f64; 3] = [1.0, 0.5, 2.0];

/// The most points of a tile, infinity counted.
const MOST: usize = 2 * PAIRS.len() + 4;

/// A matrix of `T` rows and `N` columns, known to the compiler, so that it unrolls the products with it
/// and leaves out zeros and ones. Rows: the pairs `a, -a`, then 0 where `T` is even, then infinity.
pub(crate) trait Matrix<const N: usize, const T: usize> {
    /// The elements.
    const ROWS: [[f64; N]; T];
}

/// The matrix for outputs; `A` above.
pub(crate) struct Outputs;

/// The matrix for inputs; `B` above. The row of a `-a` may have the other sign, and `G`'s with it.
pub(crate) struct Inputs;

/// The matrix for the kernel; `G` above.
pub(crate) struct Kernel;

impl<const M: usize, const T: usize> Matrix<M, T> for Outputs {
    const ROWS: [[f64; M]; T] = powers::<M, T>();
}

impl<const R: usize, const T: usize> Matrix<R, T> for Kernel {
    const ROWS: [[f64; R]; T] = {
        let mut g = powers::<R, T>();
        let b = <Inputs as Matrix<T, T>>::ROWS;
        let mut k = 0;
        while k < T - 1 {
            let mut value = 0.0;
            let mut j = T;
            while j > 0 {
                j -= 1;
                value = value * point::<T>(k) + b[k][j];
            }
            let mut i = 0;
            while i < R {
                g[k][i] /= value;
                i += 1;
            }
            k += 1;
        }
        g
    };
}

impl<const T: usize> Matrix<T, T> for Inputs {
    const ROWS: [[f64; T]; T] = {
        assert!(T >= 3 && T <= MOST);
        let mut b = [[0.0; T]; T];
        let mut k = 0;
        while k < T {
            let mut row = [0.0; T];
            row[0] = 1.0;
            let mut l = 0;
            while l < T - 1 {
                if l != k {
                    // Times (x - a_l).
                    let mut j = T;
                    while j > 0 {
                        j -= 1;
                        row[j] = if j > 0 { row[j - 1] } else { 0.0 } - point::<T>(l) * row[j];
                    }
                }
                l += 1;
            }
            b[k] = row;
            k += 1;
        }
        let mut pair = 0;
        while pair < pairs(T) {
            let mut j = 1;
            while j < T {
                b[2 * pair + 1][j] = if j % 2 == 0 { 1.0 } else { -1.0 } * b[2 * pair][j];
                j += 1;
            }
            b[2 * pair + 1][0] = b[2 * pair][0];
            pair += 1;
        }
        b
    };
}

/// Pairs of points among `count` points, of which one is infinity.
#[inline(always)] // Bounds of loops that are to be unrolled, also in other crates.
const fn pairs(count: usize) -> usize {
    (count - 1) / 2
}

/// Point number `k` of `T`, infinity excepted. The last pair beyond [`PAIRS`] is, of the fractions with small terms, the
/// one with the smallest rounding errors.
#[inline(always)]
const fn point<const T: usize>(k: usize) -> f64 {
    let positive = match k / 2 {
        pair if pair >= pairs(T) => return 0.0,
        pair if pair < PAIRS.len() => PAIRS[pair],
        _ if T.is_multiple_of(2) => 0.75,
        _ => 0.25,
    };
    if k.is_multiple_of(2) {
        positive
    } else {
        -positive
    }
}

#[inline(always)]
const fn powers<const N: usize, const T: usize>() -> [[f64; N]; T] {
    let mut powers = [[0.0; N]; T];
    let mut k = 0;
    while k < T - 1 {
        let mut power = 1.0;
        let mut i = 0;
        while i < N {
            powers[k][i] = power;
            power *= point::<T>(k);
            i += 1;
        }
        k += 1;
    }
    powers[T - 1][N - 1] = 1.0;
    powers
}

/// `matrix · x`, by pairs of rows.
#[inline(always)]
fn expand<R: Real, S: Simd, X: Matrix<N, T>, const N: usize, const T: usize>(
    simd: S,
    x: [R::Vector<S>; N],
) -> [R::Vector<S>; T] {
    let mut y = [R::splat(simd, R::zero()); T];
    for pair in 0..pairs(T) {
        let row = &const { X::ROWS }[2 * pair];
        let even = combine::<R, S, N>(simd, row, x, |j| j % 2 == 0);
        let odd = combine::<R, S, N>(simd, row, x, |j| j % 2 == 1);
        y[2 * pair] = <R as Real>::add(simd, even, odd);
        y[2 * pair + 1] = <R as Real>::sub(simd, even, odd);
    }
    for k in 2 * pairs(T)..T {
        y[k] = combine::<R, S, N>(simd, &const { X::ROWS }[k], x, |_| true);
    }
    y
}

/// The sum of `row[j] x[j]` over the `j` of `which`.
#[inline(always)]
fn combine<R: Real, S: Simd, const N: usize>(
    simd: S,
    row: &[f64; N],
    x: [R::Vector<S>; N],
    which: impl Fn(usize) -> bool,
) -> R::Vector<S> {
    let mut sum = None;
    for j in 0..N {
        if which(j) && row[j] != 0.0 {
            sum = Some(accumulate::<R, S>(simd, sum, row[j], x[j]));
        }
    }
    sum.unwrap_or(R::splat(simd, R::zero()))
}

/// `sum + factor · x`.
#[inline(always)]
fn accumulate<R: Real, S: Simd>(
    simd: S,
    sum: Option<R::Vector<S>>,
    factor: f64,
    x: R::Vector<S>,
) -> R::Vector<S> {
    match sum {
        None if factor == 1.0 => x,
        None => <R as Real>::mul(simd, R::splat(simd, R::from_f64(factor)), x),
        Some(sum) if factor == 1.0 => <R as Real>::add(simd, sum, x),
        Some(sum) if factor == -1.0 => <R as Real>::sub(simd, sum, x),
        Some(sum) => R::fma(simd, R::splat(simd, R::from_f64(factor)), x, sum),
    }
}

/// `matrix' · x`, by pairs of rows.
#[inline(always)]
fn contract<R: Real, S: Simd, X: Matrix<N, T>, const N: usize, const T: usize>(
    simd: S,
    x: [R::Vector<S>; T],
) -> [R::Vector<S>; N] {
    let matrix = const { X::ROWS };
    let zero = R::splat(simd, R::zero());
    let mut sums = [zero; T];
    let mut differences = [zero; T];
    for pair in 0..pairs(T) {
        sums[pair] = <R as Real>::add(simd, x[2 * pair], x[2 * pair + 1]);
        differences[pair] = <R as Real>::sub(simd, x[2 * pair], x[2 * pair + 1]);
    }
    let mut y = [zero; N];
    for j in 0..N {
        let mut sum = None;
        for pair in 0..pairs(T) {
            let factor = matrix[2 * pair][j];
            if factor != 0.0 {
                let x = if j % 2 == 0 {
                    sums[pair]
                } else {
                    differences[pair]
                };
                sum = Some(accumulate::<R, S>(simd, sum, factor, x));
            }
        }
        for k in 2 * pairs(T)..T {
            if matrix[k][j] != 0.0 {
                sum = Some(accumulate::<R, S>(simd, sum, matrix[k][j], x[k]));
            }
        }
        y[j] = sum.unwrap_or(zero);
    }
    y
}

/// `matrix · x · matrix'` of an `N` by `N` tile: `load` gives its elements, `store` takes those of the
/// `T` by `T` result.
#[inline(always)]
pub(crate) fn expand_tile<R: Real, S: Simd, X: Matrix<N, T>, const N: usize, const T: usize>(
    simd: S,
    load: impl Fn(usize, usize) -> R::Vector<S>,
    mut store: impl FnMut(usize, usize, R::Vector<S>),
) {
    let mut half = [[R::splat(simd, R::zero()); N]; T];
    for j in 0..N {
        let mut column = [R::splat(simd, R::zero()); N];
        for i in 0..N {
            column[i] = load(i, j);
        }
        let column = expand::<R, S, X, N, T>(simd, column);
        for k in 0..T {
            half[k][j] = column[k];
        }
    }
    for k in 0..T {
        let row = expand::<R, S, X, N, T>(simd, half[k]);
        for l in 0..T {
            store(k, l, row[l]);
        }
    }
}

/// `matrix' · x · matrix` of a `T` by `T` tile: `load` gives its elements, `store` takes those of the
/// `N` by `N` result.
#[inline(always)]
pub(crate) fn contract_tile<R: Real, S: Simd, X: Matrix<N, T>, const N: usize, const T: usize>(
    simd: S,
    load: impl Fn(usize, usize) -> R::Vector<S>,
    mut store: impl FnMut(usize, usize, R::Vector<S>),
) {
    let mut half = [[R::splat(simd, R::zero()); T]; N];
    for l in 0..T {
        let mut column = [R::splat(simd, R::zero()); T];
        for k in 0..T {
            column[k] = load(k, l);
        }
        let column = contract::<R, S, X, N, T>(simd, column);
        for i in 0..N {
            half[i][l] = column[i];
        }
    }
    for i in 0..N {
        let row = contract::<R, S, X, N, T>(simd, half[i]);
        for j in 0..N {
            store(i, j, row[j]);
        }
    }
}
