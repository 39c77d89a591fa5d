//! The page's plots: inline SVG that takes its colours from the page.

use std::cmp::Reverse;
use std::fmt::Write;

use askama::Template;

use super::words::{count, counted, percent, points, printable};
use super::{CrossValidated, Variance};
use crate::{Evaluation, ImageMap, Reliability};
use luthier_artifact::LearningPoint;

/// Room for the numbers and titles of the axes, and for half a number at either end.
const LEFT: f64 = 44.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 38.0;

/// The symbols of classes. Their number and that of the colours have no common factor, so that 56 classes look different.
const SYMBOLS: [&str; 7] = [
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
    "m-2.7-2.7h5.4v5.4h-5.4z",
    "m0-3.6l3.4 6h-6.8z",
    "m0-3.8l3.8 3.8l-3.8 3.8l-3.8-3.8z",
    "m0 3.6l3.4-6h-6.8z",
    "m-1-3.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5v-2h2.5z",
    "m0-1.4l2-2l1.4 1.4l-2 2l2 2l-1.4 1.4l-2-2l-2 2l-1.4-1.4l2-2l-2-2l1.4-1.4z",
];
const N_COLORS: usize = 8;

#[derive(Template)]
#[template(path = "chart.svg")]
pub(super) struct Chart {
    /// Unique on the page.
    name: &'static str,
    title: &'static str,
    /// What is to be seen, in words.
    pub(super) description: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    bottom: f64,
    x_title: &'static str,
    y_title: &'static str,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    shapes: Vec<Shape>,
    notes: Vec<Note>,
}

struct Tick {
    at: f64,
    label: String,
}

struct Shape {
    /// CSS classes.
    class: String,
    path: String,
    /// The rows of the points and where they are: row, x and y of each.
    points: String,
}

/// Words beside a point.
struct Note {
    x: f64,
    y: f64,
    anchor: &'static str,
    text: String,
}

/// A plot with the numbers behind it.
#[derive(Template)]
#[template(path = "plot.html")]
pub(super) struct Plot {
    pub(super) chart: Chart,
    pub(super) columns: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// From numbers to places along an axis.
struct Axis {
    title: &'static str,
    low: f64,
    high: f64,
    /// Values and labels.
    ticks: Vec<(f64, String)>,
    scale: fn(f64) -> f64,
}

impl Axis {
    /// A linear axis from the first round number at or below `low` to the last at or above `high`.
    fn linear(title: &'static str, low: f64, high: f64, label: impl Fn(f64, usize) -> String) -> Self {
        let span = if high > low { high - low } else { low.abs().max(1.0) };
        let rough = span / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = power
            * [1.0, 2.0, 5.0, 10.0]
                .into_iter()
                .find(|&multiple| multiple * power >= 0.999 * rough)
                .unwrap_or(10.0);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let (first, last) = ((low / step + 1e-9).floor(), ((low + span) / step - 1e-9).ceil());
        let ticks = (0..=(last - first) as usize)
            .map(|n| (first + n as f64) * step)
            .map(|value| (value, label(value, decimals)))
            .collect();
        Axis {
            title,
            low: first * step,
            high: last * step,
            ticks,
            scale: |value| value,
        }
    }

    fn shares(title: &'static str, low: f64, high: f64) -> Self {
        // The label's unit is a hundred times as small.
        Axis::linear(title, low.max(0.0), high.min(1.0), |value, decimals| {
            format!("{:.*}\u{202f}%", decimals.saturating_sub(2), 100.0 * value)
        })
    }

    fn counts(title: &'static str, high: f64) -> Self {
        Axis::linear(title, 0.0, high, |value, _| count(value.round())).between(0.0, high)
    }

    fn numbers(title: &'static str, low: f64, high: f64) -> Self {
        Axis::linear(title, low, high, |value, decimals| {
            format!("{value:.decimals$}").replace('-', "−")
        })
    }

    /// The same axis between these values, though they may not be round.
    fn between(self, low: f64, high: f64) -> Self {
        if low < high { Axis { low, high, ..self } } else { self }
    }

    /// A logarithmic axis with a tick at every power of ten, and half a step of room at either end.
    fn powers_of_ten(title: &'static str, low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        // Beyond some eight labels they would touch each other.
        let step = ((last - first) / 8 + 1) as usize;
        let ticks = (first..=last).step_by(step).map(|power| {
            let value = 10f64.powi(power);
            (value, value.to_string())
        });
        Axis {
            title,
            low: low.log10() - 0.25,
            high: high.log10() + 0.25,
            ticks: ticks.collect(),
            scale: f64::log10,
        }
    }

    /// Where a value is, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        ((self.scale)(value) - self.low) / (self.high - self.low)
    }
}

/// A chart in the making.
struct Canvas {
    x: Axis,
    y: Axis,
    width: f64,
    height: f64,
    shapes: Vec<Shape>,
    notes: Vec<Note>,
}

impl Canvas {
    fn new(width: f64, height: f64, x: Axis, y: Axis) -> Self {
        Canvas {
            x,
            y,
            width,
            height,
            shapes: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn x(&self, value: f64) -> f64 {
        tenth(LEFT + self.x.share(value) * (self.width - LEFT - RIGHT))
    }

    fn y(&self, value: f64) -> f64 {
        tenth(self.height - BOTTOM - self.y.share(value) * (self.height - TOP - BOTTOM))
    }

    fn add(&mut self, class: impl Into<String>, path: String) {
        self.shapes.push(Shape {
            class: class.into(),
            path,
            points: String::new(),
        });
    }

    fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (x, y) in points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            put(&mut path, command, self.x(x), self.y(y));
        }
        self.add(class, path);
    }

    /// Discs of the given radii around the points.
    fn dots(&mut self, class: &str, points: impl Iterator<Item = (f64, f64, f64)>) {
        let mut path = String::new();
        for (x, y, radius) in points {
            put(&mut path, 'M', self.x(x), self.y(y));
            let (radius, across) = (tenth(radius), tenth(2.0 * radius));
            write!(
                path,
                "m-{radius} 0a{radius} {radius} 0 1 0 {across} 0a{radius} {radius} 0 1 0-{across} 0"
            )
            .expect("a String takes every byte");
        }
        self.add(class, path);
    }

    /// Vertical bars from the one value to the other.
    fn bars(&mut self, class: &str, bars: impl Iterator<Item = (f64, f64, f64)>) {
        let mut path = String::new();
        for (x, low, high) in bars {
            put(&mut path, 'M', self.x(x), self.y(low));
            write!(path, "V{}", self.y(high)).expect("a String takes every byte");
        }
        self.add(class, path);
    }

    /// Words below a point, on the side where there is more room.
    fn note(&mut self, x: f64, y: f64, text: String) {
        let (side, anchor) = if self.x.share(x) > 0.5 {
            (-7.0, "end")
        } else {
            (7.0, "start")
        };
        self.notes.push(Note {
            x: self.x(x) + side,
            y: self.y(y) + 16.0,
            anchor,
            text,
        });
    }

    fn finish(self, name: &'static str, title: &'static str, description: String) -> Chart {
        let inside = |axis: &Axis| -> Vec<(f64, String)> {
            let visible = |(value, _): &&(f64, String)| (-1e-9..=1.0 + 1e-9).contains(&axis.share(*value));
            axis.ticks.iter().filter(visible).cloned().collect()
        };
        let tick = |at: f64, label: String| Tick { at, label };
        let (x_ticks, y_ticks) = (inside(&self.x), inside(&self.y));
        Chart {
            name,
            title,
            description,
            x_ticks: x_ticks
                .into_iter()
                .map(|(value, label)| tick(self.x(value), label))
                .collect(),
            y_ticks: y_ticks
                .into_iter()
                .map(|(value, label)| tick(self.y(value), label))
                .collect(),
            width: self.width,
            height: self.height,
            left: LEFT,
            right: self.width - RIGHT,
            bottom: self.height - BOTTOM,
            x_title: self.x.title,
            y_title: self.y.title,
            shapes: self.shapes,
            notes: self.notes,
        }
    }
}

/// To a tenth of a unit: what is finer cannot be seen.
fn tenth(value: f64) -> f64 {
    (10.0 * value).round() / 10.0
}

fn put(path: &mut String, command: char, x: f64, y: f64) {
    write!(path, "{command}{x} {y}").expect("a String takes every byte");
}

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 240.0;

/// Explained variance against the number of components, with the number that was kept; `None` if it is not known.
pub(super) fn variance(variance: Variance<'_>) -> Option<Plot> {
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (variance.ratios.iter())
        .map(|ratio| {
            sum += ratio;
            sum
        })
        .collect();
    let kept = variance.n_components;
    let &explained = cumulative.get(kept.checked_sub(1)?)?;
    let n = cumulative.len();
    let mut canvas = Canvas::new(
        WIDTH,
        HEIGHT,
        Axis::counts("Principal components", n as f64),
        Axis::shares("Explained variance", 0.0, 1.0),
    );
    let at = |n: usize| (n as f64, if n == 0 { 0.0 } else { cumulative[n - 1] });
    canvas.line(
        "guide",
        [(kept as f64, 0.0), (kept as f64, explained), (0.0, explained)].into_iter(),
    );
    canvas.line("line", (0..=n).map(at));
    canvas.dots("dot", std::iter::once((kept as f64, explained, 4.0)));
    canvas.note(
        kept as f64,
        explained,
        format!("{}: {}", count(kept), percent(explained)),
    );
    let chart = canvas.finish(
        "variance",
        "Explained variance",
        format!(
            "The first {} of {} principal components explain {} of the variance.",
            count(kept),
            count(n),
            percent(explained)
        ),
    );
    let mut shown: Vec<usize> = (0..4)
        .flat_map(|power| [1, 2, 5].map(|digit| digit * 10usize.pow(power)))
        .filter(|&shown| shown < n)
        .chain([kept, n])
        .collect();
    shown.sort_unstable();
    shown.dedup();
    let row = |n: usize| {
        let number = if n == kept {
            format!("{} (kept)", count(n))
        } else {
            count(n)
        };
        vec![number, percent(variance.ratios[n - 1]), percent(cumulative[n - 1])]
    };
    Some(Plot {
        chart,
        columns: vec!["Component", "Its share of the variance", "Share up to it"],
        rows: shown.into_iter().map(row).collect(),
    })
}

/// How often predictions are right against how probable they are said to be, before and after calibration.
pub(super) fn reliability(evaluation: &Evaluation) -> Plot {
    let after = &evaluation.reliability;
    let before = evaluation.uncalibrated.as_ref().unwrap_or(after);
    let mut canvas = Canvas::new(
        WIDTH,
        HEIGHT,
        Axis::shares("Probability of the predicted class", 0.0, 1.0),
        Axis::shares("Predicted rightly", 0.0, 1.0),
    );
    canvas.line("guide", [(0.0, 0.0), (1.0, 1.0)].into_iter());
    let largest = (after.bins.iter().chain(&before.bins))
        .map(|bin| bin.n)
        .max()
        .unwrap_or(1) as f64;
    let mut curves = vec![("after", after)];
    if before != after {
        curves.insert(0, ("before", before));
    }
    for &(class, Reliability { bins, .. }) in &curves {
        canvas.line(
            &format!("line {class}"),
            bins.iter().map(|bin| (bin.probability, bin.accuracy)),
        );
        let radius = |n: usize| 2.0 + 4.0 * (n as f64 / largest).sqrt();
        let dots = bins.iter().map(|bin| (bin.probability, bin.accuracy, radius(bin.n)));
        canvas.dots(&format!("dot {class}"), dots);
    }
    let rows = curves.iter().flat_map(|&(when, Reliability { bins, .. })| {
        bins.iter().map(move |bin| {
            vec![
                when.to_owned(),
                percent(bin.probability),
                percent(bin.accuracy),
                count(bin.n),
            ]
        })
    });
    Plot {
        columns: vec!["Calibration", "Mean probability", "Predicted rightly", "Images"],
        rows: rows.collect(),
        chart: canvas.finish(
            "reliability",
            "Reliability",
            format!(
                "How often predictions are right against how probable they are said to be: on the diagonal they agree. \
                 The calibration error is {:.3} before calibration and {:.3} after it.",
                before.calibration_error, after.calibration_error
            ),
        ),
    }
}

/// The log loss of each C in cross-validation.
pub(super) fn regularization(found: CrossValidated<'_>) -> Option<Plot> {
    let candidates = &found.info.candidates;
    let (first, last) = (candidates.first()?, candidates.last()?);
    let ends = |sign: f64| {
        let ends = candidates
            .iter()
            .map(move |one| one.log_loss + sign * one.standard_error);
        move || ends.clone()
    };
    let (lows, highs) = (ends(-1.0), ends(1.0));
    let mut canvas = Canvas::new(
        WIDTH,
        HEIGHT,
        Axis::powers_of_ten("C", first.c, last.c),
        Axis::numbers(
            "Log loss",
            lows().fold(f64::INFINITY, f64::min),
            highs().fold(f64::NEG_INFINITY, f64::max),
        ),
    );
    canvas.bars(
        "error",
        candidates
            .iter()
            .zip(lows().zip(highs()))
            .map(|(one, (low, high))| (one.c, low, high)),
    );
    canvas.line("line", candidates.iter().map(|one| (one.c, one.log_loss)));
    canvas.dots("dot", candidates.iter().map(|one| (one.c, one.log_loss, 3.0)));
    let chosen = candidates.iter().filter(|one| one.c == found.c);
    for one in chosen {
        canvas.dots("ring", std::iter::once((one.c, one.log_loss, 6.5)));
    }
    let row = |c: f64| {
        if c == found.c {
            format!("{c} (chosen)")
        } else {
            c.to_string()
        }
    };
    Some(Plot {
        columns: vec!["C", "Log loss", "Standard error"],
        rows: (candidates.iter())
            .map(|one| {
                vec![
                    row(one.c),
                    format!("{:.4}", one.log_loss),
                    format!("{:.4}", one.standard_error),
                ]
            })
            .collect(),
        chart: canvas.finish(
            "regularization",
            "Log loss in cross-validation",
            format!(
                "Log loss on the images held out against C from {} to {}, with one standard error to either side. \
                 C = {} was chosen.",
                first.c, last.c, found.c
            ),
        ),
    })
}

/// The accuracy in cross-validation against the number of training images.
pub(super) fn learning(curve: &[LearningPoint]) -> Option<Plot> {
    let last = curve.last()?;
    let ends = |sign: f64| {
        curve
            .iter()
            .map(move |point| (point.accuracy + sign * 2.0 * point.behind[1]).clamp(0.0, 1.0))
    };
    let mut canvas = Canvas::new(
        WIDTH,
        HEIGHT,
        Axis::counts("Training images", last.n_train),
        Axis::shares(
            "Accuracy",
            ends(-1.0).fold(1.0, f64::min) - 0.01,
            ends(1.0).fold(0.0, f64::max) + 0.01,
        ),
    );
    let bars = curve.iter().zip(ends(-1.0).zip(ends(1.0)));
    canvas.bars("error", bars.map(|(point, (low, high))| (point.n_train, low, high)));
    canvas.line("line", curve.iter().map(|point| (point.n_train, point.accuracy)));
    canvas.dots("dot", curve.iter().map(|point| (point.n_train, point.accuracy, 3.5)));
    Some(Plot {
        columns: vec![
            "Training images",
            "Accuracy",
            "Behind the last (points)",
            "Standard error",
        ],
        rows: (curve.iter())
            .map(|point| {
                vec![
                    count(point.n_train.round()),
                    percent(point.accuracy),
                    points(point.behind[0]),
                    points(point.behind[1]),
                ]
            })
            .collect(),
        chart: canvas.finish(
            "learning",
            "Learning curve",
            format!(
                "Accuracy on images held out against the number of training images: {} with {}, {} with {}. \
                 Bars reach two standard errors of the difference to the last point.",
                percent(curve[0].accuracy),
                count(curve[0].n_train.round()),
                percent(last.accuracy),
                count(last.n_train.round())
            ),
        ),
    })
}

/// The images of these rows that are on the map. `None` if there are none.
pub(super) fn map(evaluation: &Evaluation, map: &ImageMap, rows: &[usize]) -> Option<Chart> {
    let points: Vec<(usize, [f64; 2])> = (rows.iter())
        .filter_map(|&row| Some((row, map.place(&evaluation.rows[row].image)?)))
        .collect();
    if points.is_empty() {
        return None;
    }
    let axis = |axis: usize| {
        let values = points.iter().map(|(_, place)| place[axis]);
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let room = 0.03 * (high - low);
        // The distances have no unit.
        Axis {
            ticks: Vec::new(),
            ..Axis::numbers("", low - room, high + room).between(low - room, high + room)
        }
    };
    let mut canvas = Canvas::new(560.0, 460.0, axis(0), axis(1));
    let n_classes = evaluation.classes.len();
    let mut of_class = vec![(String::new(), String::new()); n_classes];
    let mut rings = vec![Vec::new(); n_classes];
    let mut places = vec![Vec::new(); n_classes];
    for &(row, [x, y]) in &points {
        let truth = evaluation.rows[row].truth;
        let (path, points) = &mut of_class[truth];
        put(path, 'M', canvas.x(x), canvas.y(y));
        path.push_str(symbol(truth));
        write!(points, "{row} {} {} ", canvas.x(x), canvas.y(y)).expect("a String takes every byte");
        places[truth].push([canvas.x(x), canvas.y(y)]);
        if !evaluation.rows[row].is_correct() {
            rings[truth].push((x, y, 5.5));
        }
    }
    for (class, (path, points)) in of_class.into_iter().enumerate() {
        canvas.shapes.push(Shape {
            class: format!("point {}", color(class)),
            path,
            points,
        });
    }
    let n_wrong: usize = rings.iter().map(Vec::len).sum();
    for rings in rings {
        canvas.dots("wrong", rings.into_iter());
    }
    canvas.notes = class_names(evaluation, &places);
    let description = format!(
        "{} by the likeness of their features, {} of them predicted wrongly and ringed.",
        counted(points.len(), evaluation.noun()),
        count(n_wrong)
    );
    Some(canvas.finish("map", "Map of the images", description))
}

/// The name of each class where its images lie thickest, unless it would lie on another: those of larger classes come first.
fn class_names(evaluation: &Evaluation, places: &[Vec<[f64; 2]>]) -> Vec<Note> {
    /// Of a name, in units of the picture.
    const HEIGHT: f64 = 13.0;
    const WIDTH_OF_LETTER: f64 = 6.2;
    /// How near images count, for how thick they lie.
    const NEAR: f64 = 30.0;
    let mut classes: Vec<usize> = (0..places.len()).filter(|&class| !places[class].is_empty()).collect();
    classes.sort_by_key(|&class| Reverse(places[class].len()));
    let mut notes: Vec<(Note, f64)> = Vec::new();
    for class in classes {
        let n_near = |[x, y]: &[f64; 2]| {
            let is_near = |[a, b]: &&[f64; 2]| (a - x).hypot(b - y) < NEAR;
            places[class].iter().filter(is_near).count()
        };
        let thickest = (places[class].iter())
            .max_by_key(|place| n_near(place))
            .expect("it has images");
        let name = printable(&evaluation.classes[class]);
        let half = 0.5 * WIDTH_OF_LETTER * name.chars().count() as f64;
        let [x, y] = *thickest;
        let is_free =
            (notes.iter()).all(|(note, other)| (note.y - y).abs() > HEIGHT || (note.x - x).abs() > half + other);
        if is_free {
            let note = Note {
                x,
                y,
                anchor: "middle",
                text: name,
            };
            notes.push((note, half));
        }
    }
    notes.into_iter().map(|(note, _)| note).collect()
}

/// The SVG path of a class's symbol, relative to its middle.
pub(super) fn symbol(class: usize) -> &'static str {
    SYMBOLS[class % SYMBOLS.len()]
}

/// The CSS class of a class's colour.
pub(super) fn color(class: usize) -> String {
    format!("color-{}", class % N_COLORS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_surround_the_data() {
        assert_eq!(
            labels(&Axis::shares("", 0.81, 0.93)),
            ["80\u{202f}%", "85\u{202f}%", "90\u{202f}%", "95\u{202f}%"]
        );
        assert_eq!(labels(&Axis::counts("", 1_444.0)), ["0", "500", "1,000", "1,500"]);
        assert_eq!(labels(&Axis::numbers("", -3.2, 4.1)), ["−4", "−2", "0", "2", "4", "6"]);
        assert_eq!(
            labels(&Axis::powers_of_ten("", 0.001, 10.0)),
            ["0.001", "0.01", "0.1", "1", "10"]
        );
    }

    #[test]
    fn equal_values_have_an_axis_too() {
        let axis = Axis::numbers("", 3.0, 3.0);
        assert!(axis.low <= 3.0 && 3.0 < axis.high, "{} to {}", axis.low, axis.high);
    }

    #[test]
    fn the_symbols_of_56_classes_differ() {
        let looks: HashSet<(&str, String)> = (0..56).map(|class| (symbol(class), color(class))).collect();
        assert_eq!(looks.len(), 56);
    }
}
