//! The confusion matrix as SVG, and its pixels.

use std::sync::Arc;

use askama::Template;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};
use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider};

use super::words::{counted, percent, printable};
use crate::{Error, Evaluation, Result};

/// Noto Sans, so that labels show on a machine without any font: Latin, Greek and Cyrillic. See `assets/README.md`.
const FONT: &[u8] = include_bytes!("../../assets/NotoSans-subset.ttf");
const FONT_FAMILY: &str = "Noto Sans";

/// The widest label, in SVG units; longer ones lose their middle.
const MAX_LABEL_WIDTH: f64 = 230.0;
/// The width of a digit of the bundled font, in ems.
const DIGIT_WIDTH: f64 = 0.572;
/// Room for a viewer whose font is wider than ours.
const FONT_SLACK: f64 = 1.1;
const MARGIN: f64 = 24.0;
/// Title, subtitle and legend above the matrix.
const HEAD: f64 = 104.0;
const MIN_WIDTH: f64 = 520.0;

/// Pixels per SVG unit, unless the longer side would then exceed [`MAX_PIXELS`].
const PIXELS_PER_UNIT: f64 = 2.0;
const MAX_PIXELS: f64 = 6_000.0;

/// Blue for hits and orange for confusions: told apart with any colour vision, and in grey by their place.
const HIT: Color = Color([0x1f, 0x5a, 0x96]);
const MISS: Color = Color([0xc2, 0x50, 0x1b]);

/// How strongly a cell is coloured, `0..=1`: by its share of the row, but never so weakly that a single image is overlooked.
pub(super) fn shade(count: u64, row_total: u64) -> f64 {
    if count == 0 {
        0.0
    } else {
        0.12 + 0.88 * count as f64 / row_total as f64
    }
}

#[derive(Clone, Copy)]
struct Color([u8; 3]);

impl Color {
    /// This colour laid over white with an opacity.
    fn over_white(self, opacity: f64) -> Color {
        Color(
            self.0
                .map(|channel| (255.0 - opacity * (255.0 - f64::from(channel))).round() as u8),
        )
    }

    /// Black or white, whichever reads better on this colour, by WCAG's relative luminance.
    ///
    /// Contrasts are equal at 0.179, but white on a saturated colour reads better than that ratio says: it is kept up to 0.3.
    fn ink(self) -> &'static str {
        let linear = self.0.map(|channel| {
            let value = f64::from(channel) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        });
        let luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        if luminance > 0.3 { "#1c1d20" } else { "#ffffff" }
    }

    fn hex(self) -> String {
        let [red, green, blue] = self.0;
        format!("#{red:02x}{green:02x}{blue:02x}")
    }
}

#[derive(Template)]
#[template(path = "confusion_matrix.svg")]
struct ConfusionPlot {
    width: f64,
    height: f64,
    subtitle: String,
    left: f64,
    top: f64,
    /// Length of the matrix's sides.
    side: f64,
    /// Where the lines between cells run, from 0 to `side`.
    lines: Vec<f64>,
    cells: Vec<Cell>,
    labels: Vec<Label>,
    label_size: f64,
    count_size: f64,
    hit: [String; 2],
    miss: [String; 2],
}

struct Cell {
    x: f64,
    y: f64,
    width: f64,
    fill: String,
    ink: &'static str,
    count: u64,
    description: String,
}

/// A class's name, as it is and as it fits, and its middle along either side of the matrix.
struct Label {
    full: String,
    short: String,
    middle: f64,
}

/// The confusion matrix as an SVG document: rows are true classes, and each cell's colour is its share of its row.
pub(super) fn confusion_svg(evaluation: &Evaluation) -> String {
    let n_classes = evaluation.classes.len();
    let ruler = Ruler::new();

    let (cell, label_size, count_size) = match n_classes {
        ..=4 => (68.0, 14.0, 16.0),
        5..=12 => (46.0, 13.0, 14.0),
        13..=30 => (32.0, 12.0, 11.0),
        31..=60 => (23.0, 11.0, 9.0),
        _ => (17.0, 10.0, 7.5),
    };
    let largest = evaluation.confusion.iter().flatten().max().copied().unwrap_or(0);
    let cell = f64::max(cell, largest.to_string().len() as f64 * DIGIT_WIDTH * count_size + 6.0);
    let side = cell * n_classes as f64;

    let labels: Vec<Label> = (0..n_classes)
        .map(|class| {
            let full = printable(&evaluation.classes[class]);
            Label {
                short: ruler.shorten(&full, label_size),
                full,
                middle: cell * (class as f64 + 0.5),
            }
        })
        .collect();
    let widest = labels
        .iter()
        .map(|label| ruler.width(&label.short, label_size))
        .fold(0.0, f64::max)
        * FONT_SLACK;
    // Column labels hang to the lower left at 45°.
    let hang = (widest + label_size) * std::f64::consts::FRAC_1_SQRT_2;
    let axis_title = 30.0;
    let left = f64::max(MARGIN + axis_title + widest + 10.0, MARGIN + hang - cell / 2.0);
    let width = f64::max(left + side + MARGIN, MIN_WIDTH);
    let height = HEAD + side + 10.0 + hang + axis_title + MARGIN;

    let mut cells = Vec::new();
    for (truth, counts) in evaluation.confusion.iter().enumerate() {
        let total = counts.iter().sum();
        for (predicted, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let color = if truth == predicted { HIT } else { MISS }.over_white(shade(count, total));
            cells.push(Cell {
                x: cell * predicted as f64,
                y: cell * truth as f64,
                width: cell,
                fill: color.hex(),
                ink: color.ink(),
                count,
                description: format!(
                    "{} → {}: {count} of {total}",
                    labels[truth].full, labels[predicted].full
                ),
            });
        }
    }

    let legend_of = |color: Color| [shade(1, u64::MAX), 1.0].map(|opacity| color.over_white(opacity).hex());
    ConfusionPlot {
        width,
        height,
        subtitle: format!(
            "{}, accuracy {}",
            counted(evaluation.n, evaluation.noun()),
            percent(evaluation.accuracy.value)
        ),
        left,
        top: HEAD,
        side,
        lines: (0..=n_classes).map(|line| cell * line as f64).collect(),
        cells,
        labels,
        label_size,
        count_size,
        hit: legend_of(HIT),
        miss: legend_of(MISS),
    }
    .render()
    .expect("numbers and strings always render")
}

/// Draws an SVG document as a PNG, two pixels a unit but at most 6,000 on the longer side.
///
/// System fonts are asked only for what the bundled font lacks, so that most plots are the same everywhere.
pub(super) fn png(svg: &str) -> Result<Vec<u8>> {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    if !Ruler::new().knows(svg) {
        fonts.load_system_fonts();
    }
    let options = Options {
        font_family: FONT_FAMILY.to_owned(),
        fontdb: Arc::new(fonts),
        ..Options::default()
    };
    let tree = Tree::from_str(svg, &options).map_err(|error| Error::Plot(error.to_string()))?;
    let size = tree.size();
    let scale = PIXELS_PER_UNIT.min(MAX_PIXELS / f64::from(size.width().max(size.height()))) as f32;
    let [width, height] = [size.width(), size.height()].map(|length| (length * scale).ceil() as u32);
    let mut pixels =
        Pixmap::new(width, height).ok_or_else(|| Error::Plot(format!("no memory for {width} × {height} pixels")))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| Error::Plot(error.to_string()))
}

/// Measures text set in the bundled font.
struct Ruler(FontRef<'static>);

impl Ruler {
    fn new() -> Self {
        Ruler(FontRef::new(FONT).expect("the bundled font is sound"))
    }

    /// Whether the font has every character that would show.
    fn knows(&self, text: &str) -> bool {
        let characters = self.0.charmap();
        text.chars()
            .filter(|c| !c.is_control())
            .all(|c| characters.map(c).is_some())
    }

    /// The width of `text` at a font size, in the size's unit. Characters that the font lacks count as one em.
    fn width(&self, text: &str, size: f64) -> f64 {
        let characters = self.0.charmap();
        let metrics = self.0.glyph_metrics(Size::new(size as f32), LocationRef::default());
        text.chars()
            .map(|c| {
                characters
                    .map(c)
                    .and_then(|glyph| metrics.advance_width(glyph))
                    .map_or(size, f64::from)
            })
            .sum()
    }

    /// `text`, or as much of its start and end as fits into [`MAX_LABEL_WIDTH`].
    fn shorten(&self, text: &str, size: f64) -> String {
        if self.width(text, size) <= MAX_LABEL_WIDTH {
            return text.to_owned();
        }
        let characters: Vec<char> = text.chars().collect();
        // Names that share a long stem differ at their end: a third of what is kept is from there.
        let candidate = |kept: usize| -> String {
            let tail = kept / 3;
            let (start, end) = (&characters[..kept - tail], &characters[characters.len() - tail..]);
            start.iter().chain(&['…']).chain(end).collect()
        };
        (0..characters.len())
            .rev()
            .map(candidate)
            .find(|short| self.width(short, size) <= MAX_LABEL_WIDTH)
            .unwrap_or_else(|| "…".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_labels_stay_and_long_ones_keep_both_ends() {
        let ruler = Ruler::new();
        assert_eq!(ruler.shorten("violin", 13.0), "violin");
        let long = "a very long name of an instrument from a distant place, variant B";
        let short = ruler.shorten(long, 13.0);
        assert!(
            short.starts_with("a very long name") && short.ends_with("variant B"),
            "{short}"
        );
        assert!(ruler.width(&short, 13.0) <= MAX_LABEL_WIDTH && ruler.width(&short, 13.0) > 0.9 * MAX_LABEL_WIDTH);
    }

    #[test]
    fn widths_follow_the_font() {
        let ruler = Ruler::new();
        assert!(
            (ruler.width("0", 100.0) - 100.0 * DIGIT_WIDTH).abs() < 0.1,
            "{}",
            ruler.width("0", 100.0)
        );
        assert!(ruler.width("MMMM", 10.0) > 2.0 * ruler.width("iiii", 10.0));
        assert_eq!(ruler.width("二胡", 10.0), 20.0);
    }

    #[test]
    fn the_bundled_font_knows_latin_greek_and_cyrillic_only() {
        let ruler = Ruler::new();
        assert!(ruler.knows("Flügelhorn, μπουζούκι, балалайка, đàn bầu: 92.6\u{202f}% …"));
        assert!(!ruler.knows("二胡"));
    }

    #[test]
    fn ink_stands_out_from_what_is_below() {
        assert_eq!([HIT, MISS].map(|color| color.over_white(0.12).ink()), ["#1c1d20"; 2]);
        assert_eq!(HIT.over_white(1.0).ink(), "#ffffff");
    }

    #[test]
    fn a_single_image_in_a_large_class_is_still_coloured() {
        assert_eq!(shade(0, 10), 0.0);
        assert!(shade(1, 1_000_000) >= 0.12);
        assert_eq!(shade(7, 7), 1.0);
    }
}
