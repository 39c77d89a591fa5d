//! Points near a point, without comparing it with all: a k-d tree.

use std::array::from_fn;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// How many points a leaf has at most.
const LEAF: usize = 32;

/// A search ends after so many comparisons, the likeliest first, so that its time stays bounded where all points are near
/// each other. Beis and Lowe, "Shape indexing using approximate nearest-neighbour search in high-dimensional spaces", 1997,
/// call this best bin first.
const MOST: usize = 4096;

/// A tree over points of `D` coordinates: each node halves its points along the axis in which they differ most.
pub(super) struct Tree<const D: usize> {
    /// The root first.
    nodes: Vec<Node<D>>,
    leaves: Vec<Leaf<D>>,
}

struct Node<const D: usize> {
    /// The box around the points.
    low: [f32; D],
    high: [f32; D],
    below: Below,
}

/// What is below a node, by its place.
#[derive(Clone, Copy)]
enum Below {
    Nodes([usize; 2]),
    Leaf(usize),
}

/// Points axis by axis, so that all are compared at once.
struct Leaf<const D: usize> {
    /// Their places in what the tree was made of.
    places: Vec<usize>,
    /// Infinite behind the last point.
    axes: [[f32; LEAF]; D],
}

/// The square of the least distance that a point of a node can have, and the node.
struct Bound(f32, usize);

impl<const D: usize> Tree<D> {
    pub(super) fn new(points: impl Iterator<Item = [f32; D]>) -> Self {
        let mut tree = Tree {
            nodes: Vec::new(),
            leaves: Vec::new(),
        };
        tree.grow(&mut points.enumerate().collect::<Vec<_>>());
        tree
    }

    /// Adds the node of these points and all below it; its place.
    fn grow(&mut self, points: &mut [(usize, [f32; D])]) -> usize {
        let (mut low, mut high) = ([f32::INFINITY; D], [f32::NEG_INFINITY; D]);
        for (_, point) in &*points {
            for axis in 0..D {
                low[axis] = low[axis].min(point[axis]);
                high[axis] = high[axis].max(point[axis]);
            }
        }
        let node = self.nodes.len();
        self.nodes.push(Node {
            low,
            high,
            below: Below::Leaf(self.leaves.len()),
        });
        let spread = |axis: &usize| high[*axis] - low[*axis];
        let widest = (0..D).max_by(|a, b| spread(a).total_cmp(&spread(b)));
        match widest {
            Some(axis) if points.len() > LEAF => {
                let middle = points.len() / 2;
                points.select_nth_unstable_by(middle, |a, b| a.1[axis].total_cmp(&b.1[axis]).then(a.0.cmp(&b.0)));
                let (left, right) = points.split_at_mut(middle);
                self.nodes[node].below = Below::Nodes([self.grow(left), self.grow(right)]);
            }
            _ => self.leaves.push(Leaf::new(points)),
        }
        node
    }

    /// Gives `near` the places of the points within `radius` of `from`: of all, unless the search ends at [`MOST`]. `near`
    /// may answer with the square of a distance: from then on only nearer points count.
    pub(super) fn search(&self, from: &[f32; D], radius: f32, mut near: impl FnMut(usize) -> Option<f32>) {
        let mut farthest = radius * radius;
        let mut next = BinaryHeap::from([Reverse(Bound(0.0, 0))]);
        let mut n_compared = 0;
        while let Some(Reverse(Bound(bound, node))) = next.pop() {
            if bound > farthest || n_compared >= MOST {
                return;
            }
            match self.nodes[node].below {
                Below::Nodes(halves) => {
                    let bounds = halves.map(|half| Bound(self.nodes[half].bound(from), half));
                    next.extend(bounds.into_iter().filter(|bound| bound.0 <= farthest).map(Reverse));
                }
                Below::Leaf(leaf) => {
                    let leaf = &self.leaves[leaf];
                    for (distance, place) in leaf.distances(from).into_iter().zip(&leaf.places) {
                        if distance <= farthest
                            && let Some(nearer) = near(*place)
                        {
                            farthest = farthest.min(nearer.next_down());
                        }
                    }
                    n_compared += leaf.places.len();
                }
            }
        }
    }
}

impl<const D: usize> Leaf<D> {
    fn new(points: &[(usize, [f32; D])]) -> Self {
        let coordinate = |axis: usize, place: usize| points.get(place).map_or(f32::INFINITY, |(_, point)| point[axis]);
        Leaf {
            places: points.iter().map(|(place, _)| *place).collect(),
            axes: from_fn(|axis| from_fn(|place| coordinate(axis, place))),
        }
    }

    /// The squares of the distances of a point from these.
    fn distances(&self, from: &[f32; D]) -> [f32; LEAF] {
        let mut squares = [0.0; LEAF];
        for (axis, from) in self.axes.iter().zip(from) {
            for (square, coordinate) in squares.iter_mut().zip(axis) {
                *square += (coordinate - from) * (coordinate - from);
            }
        }
        squares
    }
}

impl<const D: usize> Node<D> {
    /// The square of the distance from a point to the box.
    fn bound(&self, from: &[f32; D]) -> f32 {
        let mut squares = from_fn::<f32, D, _>(|axis| {
            let outside = (self.low[axis] - from[axis]).max(from[axis] - self.high[axis]).max(0.0);
            outside * outside
        });
        // Halved again and again, for one sum after the other could not be vectorized.
        let mut width = D;
        while width > 1 {
            let half = width.div_ceil(2);
            for axis in half..width {
                squares[axis - half] += squares[axis];
            }
            width = half;
        }
        squares[0]
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
        tree.search(from, radius, |place| {
            found.push(place);
            None
        });
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

    #[test]
    fn a_search_for_nearer_points_only_ends_with_the_nearest() {
        let points = points(3000);
        let tree = Tree::new(points.iter().copied());
        for from in &points[..20] {
            let square = |place: usize| {
                from.iter()
                    .zip(&points[place])
                    .map(|(a, b)| (a - b) * (a - b))
                    .sum::<f32>()
            };
            let mut found = Vec::new();
            tree.search(from, 1.0, |place| {
                found.push(place);
                (square(place) > 0.0).then(|| square(place))
            });
            let nearest = |places: &mut dyn Iterator<Item = usize>| {
                places
                    .filter(|&place| square(place) > 0.0)
                    .map(square)
                    .fold(f32::INFINITY, f32::min)
            };
            assert_eq!(nearest(&mut found.iter().copied()), nearest(&mut (0..points.len())));
            assert!(found.len() < 100, "{}", found.len());
        }
    }
}
