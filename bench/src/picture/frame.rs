//! What is around every picture: what it shows, where it was measured, on what.

use super::palette::{MUTED, NOTICE, NOTICE_INK};
use super::scene::{Scene, Style, shortened};
use crate::record::Record;

/// Width of all pictures.
pub const WIDTH: f64 = 960.0;
/// Room at both sides.
pub const MARGIN: f64 = 32.0;

/// Begins a picture: its title, a line that says how to read it, and where it is the lab's, that.
pub fn begin(record: &Record, title: &str, how: &str) -> Scene {
    let mut scene = Scene::new(WIDTH, title);
    scene.text(MARGIN, 40.0, title, Style::of(22.0).bold());
    scene.text(MARGIN, 68.0, how, Style::of(13.5).colour(MUTED));
    scene.height = 92.0;
    if record.host.is_lab() {
        let top = scene.height;
        scene.rect(MARGIN, top, WIDTH - 2.0 * MARGIN, 28.0, NOTICE);
        let style = Style::of(13.0).bold().colour(NOTICE_INK);
        let words = sentence(&record.place());
        scene.text(MARGIN + 12.0, top + 14.0, words, style);
        scene.height += 44.0;
    }
    scene
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(letters).collect()
}

/// Ends it: on what it was measured.
pub fn end(scene: &mut Scene, record: &Record) {
    let host = &record.host;
    let line = format!(
        "{} · Linux {} · {} · {}",
        host.cpu, host.host_kernel, host.kvm, host.casita
    );
    let style = Style::of(11.0).colour(MUTED);
    scene.text(MARGIN, scene.height + 10.0, shortened(&line, 140), style);
    scene.height += 36.0;
}
