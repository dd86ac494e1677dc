//! Box plots: all runs of each, and where their middle lies.

use super::axis::Axis;
use super::frame::{self, MARGIN, WIDTH};
use super::palette::{BLUE, Colour, INK, MUTED, NEUTRAL, SURFACE};
use super::scene::{Anchor, Scene, Style, shortened};
use crate::record::{Record, Timed};
use crate::statistics::quantile;
use crate::tables::figure;

const ROW: f64 = 52.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = WIDTH - 200.0;
const BOX: f64 = 24.0;
/// Of the bar behind, from zero to the median.
const BAR: f64 = 14.0;

/// The times of all.
pub fn scene(record: &Record, results: &[Timed]) -> Scene {
    let title = format!("{}: start to exit", shortened(&record.settings.command, 40));
    let how = "Milliseconds, less is better. Bar: median; dots: runs; box: the middle half; thin line: from \
               the fastest to the slowest.";
    let mut scene = frame::begin(record, &title, how);
    let most = results.iter().flat_map(|timed| &timed.samples_ms);
    let most = most.copied().fold(0.0, f64::max);
    let axis = Axis::new(LEFT, RIGHT, most);
    let top = scene.height;
    #[allow(clippy::cast_precision_loss, reason = "a few")]
    let bottom = top + ROW * results.len() as f64 + 6.0;
    axis.draw_across(&mut scene, top, bottom, "ms");
    for (index, timed) in (0..).map(f64::from).zip(results) {
        row(&mut scene, timed, &axis, top + ROW * (index + 0.5));
    }
    scene.height = bottom + 40.0;
    for missing in &record.missing {
        let line = format!("{}: {}", missing.name, missing.reason);
        let style = Style::of(12.0).colour(MUTED);
        scene.text(MARGIN, scene.height + 4.0, shortened(&line, 130), style);
        scene.height += 20.0;
    }
    frame::end(&mut scene, record);
    scene
}

/// Casita stands out.
pub fn colour_of(name: &str) -> Colour {
    if name.starts_with("casita") {
        BLUE
    } else {
        NEUTRAL
    }
}

fn row(scene: &mut Scene, timed: &Timed, axis: &Axis, y: f64) {
    let colour = colour_of(&timed.name);
    let at = |q| axis.at(quantile(&timed.samples_ms, q));
    let label = Style::of(15.0).anchor(Anchor::End);
    let ours = timed.name.starts_with("casita");
    let label = if ours { label.bold() } else { label };
    scene.text(LEFT - 16.0, y, shortened(&timed.name, 18), label);
    scene.glass(LEFT, y - BAR / 2.0, at(0.5) - LEFT, BAR, colour, 0.65);
    scene.path(vec![(at(0.0), y), (at(1.0), y)], colour, 2.0);
    for end in [0.0, 1.0] {
        scene.path(vec![(at(end), y - 5.0), (at(end), y + 5.0)], colour, 2.0);
    }
    let width = (at(0.75) - at(0.25)).max(2.0);
    scene.rect(at(0.25), y - BOX / 2.0, width, BOX, SURFACE);
    scene.glass(at(0.25), y - BOX / 2.0, width, BOX, colour, 0.8);
    for (place, sample) in timed.samples_ms.iter().enumerate() {
        // Apart, so that equal runs are seen as several; the same in each report.
        let offset = f64::from(u8::try_from(place * 5 % 9).unwrap_or(0)) - 4.0;
        scene.dot((axis.at(*sample), y + offset * 2.0), 2.0, INK, 0.45);
    }
    let middle = at(0.5);
    scene.path(
        vec![(middle, y - BOX / 2.0 - 3.0), (middle, y + BOX / 2.0 + 3.0)],
        INK,
        3.0,
    );
    let [low, high] = timed.p50_interval_ms;
    let x = RIGHT + 22.0;
    let figures = Style::of(15.0).bold();
    scene.text(x, y - 8.0, format!("{} ms", figure(timed.p50_ms)), figures);
    let sure = format!(
        "{} to {}, p99 {}",
        figure(low),
        figure(high),
        figure(timed.p99_ms)
    );
    scene.text(x, y + 10.0, sure, Style::of(11.5).colour(MUTED));
}
