//! Loads: for each a bar for each subject, on a scale of its own that begins at zero.

use super::boxes::colour_of;
use super::frame::{self, MARGIN, WIDTH};
use super::palette::{GRID, INK, MUTED};
use super::scene::{Anchor, Scene, Style, shortened};
use crate::record::{Load, Record};
use crate::tables::figure;

const LEFT: f64 = 150.0;
const RIGHT: f64 = WIDTH - 250.0;
const BAR: f64 = 26.0;

/// All loads, one below the other.
pub fn scene(record: &Record, results: &[Load]) -> Scene {
    let how = "More is better. Bars: medians, each load on its own scale from zero; lines: 95 % \
               confidence; dots: runs.";
    let mut scene = frame::begin(record, record.title(), how);
    let mut done: Vec<(&str, &str)> = Vec::new();
    for load in results {
        let kind = (load.load.as_str(), load.unit.as_str());
        if !done.contains(&kind) {
            done.push(kind);
            group(&mut scene, kind, results);
        }
    }
    for missing in &record.missing {
        let line = format!("{}: {}", missing.name, missing.reason);
        let style = Style::of(12.0).colour(MUTED);
        scene.text(MARGIN, scene.height + 4.0, shortened(&line, 130), style);
        scene.height += 20.0;
    }
    scene.height += 8.0;
    frame::end(&mut scene, record);
    scene
}

fn group(scene: &mut Scene, (load, unit): (&str, &str), results: &[Load]) {
    let own = || {
        let same = move |one: &&Load| one.load == load && one.unit == unit;
        results.iter().filter(same)
    };
    let most = own().flat_map(|one| &one.samples).copied();
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| LEFT + (RIGHT - LEFT) * (value / most).clamp(0.0, 1.0);
    let title = Style::of(14.0).bold();
    scene.text(
        MARGIN,
        scene.height + 10.0,
        format!("{load}, {unit}"),
        title,
    );
    scene.height += 26.0;
    let top = scene.height;
    for one in own() {
        let y = scene.height + BAR / 2.0;
        let name = Style::of(13.5).anchor(Anchor::End);
        scene.text(LEFT - 14.0, y, shortened(&one.name, 16), name);
        let colour = colour_of(&one.name);
        scene.rect(LEFT, y - 9.0, at(one.median) - LEFT, 18.0, colour);
        let [low, high] = one.interval;
        scene.path(vec![(at(low), y), (at(high), y)], INK, 1.5);
        for sample in &one.samples {
            scene.dot((at(*sample), y), 2.0, INK, 0.6);
        }
        let value = Style::of(13.5).bold();
        scene.text(RIGHT + 18.0, y, figure(one.median), value);
        if let Some(half) = one.latency_p50_us {
            let high = one.latency_p99_us.map(|us| format!(", p99 {}", figure(us)));
            let text = format!("{} us{}", figure(half), high.unwrap_or_default());
            scene.text(RIGHT + 92.0, y, text, Style::of(11.5).colour(MUTED));
        }
        scene.height += BAR;
    }
    scene.path(vec![(LEFT, top), (LEFT, scene.height)], GRID, 1.5);
    scene.height += 16.0;
}
