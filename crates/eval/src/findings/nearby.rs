//! Points near a point, without comparing it with all: a k-d tree.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

/// How many points a leaf has at most.
const LEAF: usize = 32;

/// With how many points one is compared, at which the search ends: a set in which all points are near each other takes time
/// in proportion to its size all the same. Nearer leaves come first, and mostly all that can hold a near point have had
/// their turn before. Beis and Lowe, "Shape indexing using approximate nearest-neighbour search in high-dimensional
/// spaces", 1997, call this best bin first.
const MOST: usize = 4096;

/// A tree over points of `D` coordinates: each node halves its points along the axis in which they differ most.
pub(super) struct Tree<const D: usize> {
    /// In the order of the leaves, with their places in what the tree was made of.
    points: Vec<(usize, [f32; D])>,
    /// The root first.
    nodes: Vec<Node<D>>,
}

struct Node<const D: usize> {
    points: Range<usize>,
    /// The box around the points.
    low: [f32; D],
    high: [f32; D],
    /// `None` for a leaf.
    halves: Option<[usize; 2]>,
}

/// A node and a bound: the square of the least distance that one of its points can have.
struct Bound(f32, usize);

impl<const D: usize> Tree<D> {
    pub(super) fn new(points: impl Iterator<Item = [f32; D]>) -> Self {
        let mut tree = Tree {
            points: points.enumerate().collect(),
            nodes: Vec::new(),
        };
        tree.grow(0..tree.points.len());
        tree
    }

    /// Adds the node of these points and all below it.
    fn grow(&mut self, range: Range<usize>) -> usize {
        let points = &mut self.points[range.clone()];
        let (mut low, mut high) = ([f32::INFINITY; D], [f32::NEG_INFINITY; D]);
        for (_, point) in &*points {
            for axis in 0..D {
                low[axis] = low[axis].min(point[axis]);
                high[axis] = high[axis].max(point[axis]);
            }
        }
        let spread = |axis: &usize| high[*axis] - low[*axis];
        let widest = (0..D).max_by(|a, b| spread(a).total_cmp(&spread(b)));
        let middle = points.len() / 2;
        let is_leaf = points.len() <= LEAF;
        if let (false, Some(axis)) = (is_leaf, widest) {
            points.select_nth_unstable_by(middle, |a, b| a.1[axis].total_cmp(&b.1[axis]).then(a.0.cmp(&b.0)));
        }
        let node = self.nodes.len();
        let Range { start, end } = range;
        self.nodes.push(Node {
            points: start..end,
            low,
            high,
            halves: None,
        });
        if !is_leaf {
            let halves = [start..start + middle, start + middle..end].map(|half| self.grow(half));
            self.nodes[node].halves = Some(halves);
        }
        node
    }

    /// Gives `near` the places of the points within `radius` of `from`: of all, unless the search ends at [`MOST`].
    pub(super) fn search(&self, from: &[f32; D], radius: f32, mut near: impl FnMut(usize)) {
        let farthest = radius * radius;
        let mut next = BinaryHeap::from([Reverse(Bound(0.0, 0))]);
        let mut n_compared = 0;
        while let Some(Reverse(Bound(_, node))) = next.pop() {
            let node = &self.nodes[node];
            if let Some(halves) = node.halves {
                let bounds = halves.map(|half| Bound(self.nodes[half].bound(from), half));
                next.extend(bounds.into_iter().filter(|bound| bound.0 <= farthest).map(Reverse));
                continue;
            }
            for (place, point) in &self.points[node.points.clone()] {
                let distance: f32 = from.iter().zip(point).map(|(a, b)| (a - b) * (a - b)).sum();
                if distance <= farthest {
                    near(*place);
                }
            }
            n_compared += node.points.len();
            if n_compared >= MOST {
                return;
            }
        }
    }
}

impl<const D: usize> Node<D> {
    /// The square of the distance from a point to the box.
    fn bound(&self, from: &[f32; D]) -> f32 {
        let outside = |axis: usize| (self.low[axis] - from[axis]).max(from[axis] - self.high[axis]).max(0.0);
        (0..D).map(|axis| outside(axis) * outside(axis)).sum()
    }
}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Bound {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random numbers from 0 to 1.
    fn uniform(state: &mut u64) -> f32 {
        *state = (state.wrapping_mul(6364136223846793005)).wrapping_add(1442695040888963407);
        (*state >> 40) as f32 / (1u64 << 24) as f32
    }

    fn points(n: usize) -> Vec<[f32; 3]> {
        let mut state = 7;
        (0..n).map(|_| std::array::from_fn(|_| uniform(&mut state))).collect()
    }

    fn found(tree: &Tree<3>, from: &[f32; 3], radius: f32) -> Vec<usize> {
        let mut found = Vec::new();
        tree.search(from, radius, |place| found.push(place));
        found.sort_unstable();
        found
    }

    #[test]
    fn all_points_within_the_radius_are_found_and_no_others() {
        for n in [0, 1, LEAF, LEAF + 1, 3000] {
            let points = points(n);
            let tree = Tree::new(points.iter().copied());
            for (from, radius) in points.iter().take(50).zip([0.0, 0.05, 0.2].into_iter().cycle()) {
                let is_near = |point: &[f32; 3]| {
                    let squares = from.iter().zip(point).map(|(a, b)| (a - b) * (a - b));
                    squares.sum::<f32>() <= radius * radius
                };
                let expected: Vec<usize> = (0..n).filter(|&place| is_near(&points[place])).collect();
                assert_eq!(found(&tree, from, radius), expected, "{n} points");
            }
        }
    }

    #[test]
    fn where_all_points_are_near_the_nearest_are_found() {
        let points = points(4 * MOST);
        let tree = Tree::new(points.iter().copied());
        for from in &points[..20] {
            let all = found(&tree, from, 2.0);
            assert!(all.len() >= MOST && all.len() < MOST + LEAF, "{}", all.len());
            for near in found(&tree, from, 0.1) {
                assert!(all.contains(&near));
            }
        }
    }
}
