//! Where the time of a start goes, one stage after the other.

use super::axis::Axis;
use super::frame::{self, MARGIN, WIDTH};
use super::palette::{BLUE, Colour, GREEN, MUTED, ORANGE, PURPLE};
use super::scene::{Anchor, Scene, Style, about_width, shortened};
use crate::record::{By, Record, Timed};
use crate::tables::figure;

const ROW: f64 = 23.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = WIDTH - 100.0;

fn look(by: By) -> (Colour, &'static str) {
    match by {
        By::Monitor => (BLUE, "casita"),
        By::Kernel => (ORANGE, "the guest's kernel"),
        By::Guest => (GREEN, "agent and command"),
        By::End => (PURPLE, "end"),
    }
}

/// The stages of one; None for who does not tell.
pub fn scene(record: &Record, timed: &Timed) -> Option<Scene> {
    if timed.stages.is_empty() {
        return None;
    }
    let total: f64 = timed.stages.iter().map(|stage| stage.ms).sum();
    let title = format!("Where {}'s {} ms go", timed.name, figure(total));
    let how = "Stages in milliseconds, by the host's clock; each the median of its runs.";
    let mut scene = frame::begin(record, &title, how);
    legend(&mut scene, timed);
    let axis = Axis::new(LEFT, RIGHT, total);
    let top = scene.height;
    #[allow(clippy::cast_precision_loss, reason = "some twenty")]
    let bottom = top + ROW * timed.stages.len() as f64 + 6.0;
    axis.draw_across(&mut scene, top, bottom, "ms");
    let mut at = 0.0;
    for (index, stage) in (0..).map(f64::from).zip(&timed.stages) {
        let y = top + ROW * (index + 0.5) + 3.0;
        let (colour, _) = look(stage.by);
        let label = Style::of(13.0).anchor(Anchor::End);
        scene.text(LEFT - 14.0, y, shortened(&stage.name, 34), label);
        let (from, to) = (axis.at(at), axis.at(at + stage.ms));
        scene.rect(from, y - 7.0, (to - from).max(1.0), 14.0, colour);
        let value = figure(stage.ms);
        scene.text(
            to.max(from + 1.0) + 7.0,
            y,
            value,
            Style::of(12.0).colour(MUTED),
        );
        at += stage.ms;
    }
    scene.height = bottom + 40.0;
    frame::end(&mut scene, record);
    Some(scene)
}

/// Whose colour is whose, and what each has in all.
fn legend(scene: &mut Scene, timed: &Timed) {
    let y = scene.height + 8.0;
    let mut x = MARGIN;
    for by in [By::Monitor, By::Kernel, By::Guest, By::End] {
        let stages = timed.stages.iter().filter(|stage| stage.by == by);
        let sum: f64 = stages.map(|stage| stage.ms).sum();
        let (colour, name) = look(by);
        let text = format!("{name} {} ms", figure(sum));
        scene.rect(x, y - 6.0, 12.0, 12.0, colour);
        scene.text(x + 19.0, y, text.clone(), Style::of(13.0));
        x += 19.0 + about_width(&text, 13.0) + 26.0;
    }
    scene.height += 32.0;
}
