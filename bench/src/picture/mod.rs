//! Records as pictures.

mod axis;
mod bars;
mod boxes;
mod curves;
mod frame;
pub mod palette;
pub mod render;
pub mod scene;
mod waterfall;

use crate::record::{Record, Results};
use scene::Scene;

/// All pictures of a record.
pub fn scenes(record: &Record) -> Vec<Scene> {
    match &record.results {
        Results::Boot(results) => {
            let mut scenes = vec![boxes::scene(record, results)];
            let falls = results.iter();
            scenes.extend(falls.filter_map(|timed| waterfall::scene(record, timed)));
            scenes
        }
        Results::Density(results) => {
            vec![
                curves::scene(record, results),
                curves::parts(record, results),
            ]
        }
        Results::Io(results) | Results::Net(results) if !results.is_empty() => {
            vec![bars::scene(record, results)]
        }
        Results::Io(_) | Results::Net(_) => Vec::new(),
    }
}

/// All pictures of all records, one below the other.
pub fn poster(records: &[Record]) -> Scene {
    let mut poster = Scene::new(frame::WIDTH, "casita bench");
    for record in records {
        for scene in scenes(record) {
            poster.append(scene);
        }
    }
    if poster.shapes.is_empty() {
        poster.height = 40.0;
        let style = scene::Style::of(14.0);
        poster.text(frame::MARGIN, 20.0, "nothing was measured", style);
    }
    poster
}
