//! Memory against the number of instances, and what one more is made of.

use super::axis::Axis;
use super::frame::{self, MARGIN, WIDTH};
use super::palette::{BLUE, Colour, GREEN, MUTED, NEUTRAL, ORANGE, PURPLE, SKY, VERMILION};
use super::scene::{Anchor, Scene, Style, about_width, shortened};
use crate::record::{Crowd, Point, Record};
use crate::tables::figure;

const LEFT: f64 = 80.0;
const RIGHT: f64 = WIDTH - 250.0;
const HEIGHT: f64 = 330.0;
const LINES: [Colour; 7] = [BLUE, SKY, VERMILION, ORANGE, GREEN, PURPLE, NEUTRAL];
const KIB: f64 = 1024.0;

#[allow(clippy::cast_precision_loss, reason = "KiB of one machine")]
fn total_mib(point: &Point) -> f64 {
    point.total_kib() as f64 / KIB
}

/// The curves.
pub fn scene(record: &Record, results: &[Crowd]) -> Scene {
    let title = format!(
        "Memory of many at once, VMs of {} MiB",
        record.settings.memory_mib
    );
    let how = "MiB of the host's memory for all together: their processes', what they share once, and \
               the kernel's for them.";
    let mut scene = frame::begin(record, &title, how);
    scene.height += 34.0;
    let (top, bottom) = (scene.height, scene.height + HEIGHT);
    let points = || results.iter().flat_map(|crowd| &crowd.points);
    let most = points().map(total_mib).fold(0.0, f64::max);
    let up = Axis::new(bottom, top, most);
    up.draw_up(&mut scene, LEFT, RIGHT, "MiB");
    let count = points().map(|point| point.instances).max().unwrap_or(1);
    across(&mut scene, count, bottom);
    let mut ends = Vec::new();
    for (crowd, colour) in results.iter().zip(LINES.into_iter().cycle()) {
        let places: Vec<_> = crowd
            .points
            .iter()
            .map(|point| (place(point.instances, count), up.at(total_mib(point))))
            .collect();
        let Some(end) = places.last().copied() else {
            continue;
        };
        for at in &places {
            scene.dot(*at, 3.5, colour, 1.0);
        }
        scene.path(places, colour, 2.5);
        ends.push((end, crowd, colour));
    }
    labels(&mut scene, ends);
    scene.height = bottom + 62.0;
    frame::end(&mut scene, record);
    scene
}

#[allow(clippy::cast_precision_loss, reason = "some thousand at most")]
fn place(instances: usize, count: usize) -> f64 {
    LEFT + (RIGHT - LEFT) * instances as f64 / count.max(1) as f64
}

fn across(scene: &mut Scene, count: usize, bottom: f64) {
    let style = Style::of(12.0).colour(MUTED).anchor(Anchor::Middle);
    let step = count.div_ceil(10).max(1);
    for instances in (0..=count).step_by(step) {
        let x = place(instances, count);
        scene.text(x, bottom + 16.0, instances.to_string(), style);
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    scene.text(middle, bottom + 38.0, "instances", style);
}

/// Each line's name at its end, pushed apart where they would lie on each other.
fn labels(scene: &mut Scene, mut ends: Vec<((f64, f64), &Crowd, Colour)>) {
    const APART: f64 = 34.0;
    ends.sort_by(|one, other| other.0.1.total_cmp(&one.0.1));
    let mut above = f64::INFINITY;
    for ((x, y), crowd, colour) in ends {
        let label = y.min(above - APART);
        above = label;
        if (label - y).abs() > 4.0 {
            scene.path(vec![(x + 5.0, y), (x + 16.0, label)], colour, 1.0);
        }
        let each = crowd.each(Point::total_kib) / KIB;
        scene.rect(x + 18.0, label - 13.0, 4.0, 26.0, colour);
        let bold = Style::of(13.5).bold();
        scene.text(x + 30.0, label - 7.0, shortened(&crowd.name, 26), bold);
        let text = format!("{} MiB for one more", figure(each));
        scene.text(x + 30.0, label + 8.0, text, Style::of(12.0).colour(MUTED));
    }
}

/// A part's name, colour and figure in KiB.
type Part = (&'static str, Colour, fn(&Crowd) -> f64);

const PARTS: [Part; 5] = [
    ("private", BLUE, |crowd| {
        crowd.each(|point| point.private_kib)
    }),
    ("its part of what is shared", SKY, |crowd| {
        crowd.each(|point| point.proportional_kib) - crowd.each(|point| point.private_kib)
    }),
    ("files in memory", PURPLE, |crowd| {
        crowd.each(|point| point.tmpfs_kib)
    }),
    ("kernel: page tables", ORANGE, |crowd| {
        crowd.each(|point| point.page_tables_kib + point.guest_page_tables_kib)
    }),
    ("kernel: slab and stacks", GREEN, |crowd| {
        crowd.each(|point| point.kernel_kib)
            - crowd.each(|point| point.page_tables_kib + point.guest_page_tables_kib)
    }),
];

/// What one more instance of each is made of.
pub fn parts(record: &Record, results: &[Crowd]) -> Scene {
    const ROW: f64 = 46.0;
    const FROM: f64 = 190.0;
    let how = "MiB, less is better. The slope from the second instance on: the first brings what all share.";
    let mut scene = frame::begin(record, "What one more instance costs", how);
    let (y, mut x) = (scene.height + 8.0, MARGIN);
    for (name, colour, _) in PARTS {
        scene.rect(x, y - 6.0, 12.0, 12.0, colour);
        scene.text(x + 19.0, y, name, Style::of(13.0));
        x += 19.0 + about_width(name, 13.0) + 26.0;
    }
    scene.height += 34.0;
    let sum = |crowd: &Crowd| {
        PARTS
            .iter()
            .map(|(_, _, get)| get(crowd).max(0.0) / KIB)
            .sum()
    };
    let most = results.iter().map(sum).fold(0.0, f64::max);
    let axis = Axis::new(FROM, WIDTH - 140.0, most);
    let top = scene.height;
    #[allow(clippy::cast_precision_loss, reason = "a few")]
    let bottom = top + ROW * results.len() as f64 + 6.0;
    axis.draw_across(&mut scene, top, bottom, "MiB");
    for (index, crowd) in (0..).map(f64::from).zip(results) {
        let y = top + ROW * (index + 0.5) + 3.0;
        let label = Style::of(14.0).anchor(Anchor::End);
        scene.text(FROM - 16.0, y, shortened(&crowd.name, 22), label);
        let mut at = 0.0;
        for (_, colour, get) in PARTS {
            let size = get(crowd).max(0.0) / KIB;
            let (from, to) = (axis.at(at), axis.at(at + size));
            scene.rect(from, y - 12.0, to - from, 24.0, colour);
            at += size;
        }
        let value = Style::of(14.0).bold();
        scene.text(axis.at(at) + 10.0, y, figure(at), value);
    }
    scene.height = bottom + 40.0;
    frame::end(&mut scene, record);
    scene
}
